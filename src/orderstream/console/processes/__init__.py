"""The processes of the local stack: what they use, their logs, and restart, kill, pause and resume."""
