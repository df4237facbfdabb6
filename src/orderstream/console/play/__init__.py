"""The play desk of the local stack: orders at a rate, the faults of the payment simulator, and scenarios that teach."""
