"""The operator's API and pages, in a process of its own. Orders do not depend on it."""
