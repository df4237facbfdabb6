"""The executable `orderstream`: the services, the local stack, and the operator's commands.

Each command imports its modules only when it runs, so that a service loads no more than it uses and `--help` is fast.
"""
# ruff: noqa: I001 - the commands are registered in the order of docs/reference/commands.md

from orderstream.cli.root import main
from orderstream.cli import stack, services, stores, orders, stock, dead_letters, refused

__all__ = ["dead_letters", "main", "orders", "refused", "services", "stack", "stock", "stores"]
