"""The contestants of `make bench`, in the order of its table."""

import importlib
from typing import cast

from tests.load.bench.peers.contestant import Contestant

OURS = "orderstream"
PEERS = ("restate", "dbos", "temporal", "usual")
LIMIT = "limit"
"""Not a contestant, because it serves no orders: how fast the same rows and messages can be written at all."""
LEFT_OUT = "not installed. `make bench` or `make bench PEERS=temporal` installs it, which takes minutes"
_CLASSES = {
    OURS: "OrderStream",
    "restate": "Restate",
    "dbos": "DBOS",
    "temporal": "Temporal",
    "usual": "UsualWay",
}


def contestant(name: str) -> Contestant:
    """Return a contestant. Its module is loaded only now, so that a defect in it concerns only this contestant."""
    module = importlib.import_module(f"tests.load.bench.peers.{name}.contestant")
    return cast("Contestant", getattr(module, _CLASSES[name])())


def needs_minutes_to_install(name: str) -> bool:
    """Return whether this contestant must still be compiled, which does not fit into a quick run."""
    return (
        name == "temporal" and not importlib.import_module("tests.load.bench.peers.temporal.contestant").is_installed()
    )
