"""The promises with their statements, and the audit in the background."""
