"""How often a service process looks for cycles of objects that nothing refers to."""

import gc

NEW_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python's default is 700. The records of a batch are hardly ever part of a cycle."""


def collect_rarely() -> None:
    """Collect less often, and exclude the objects that exist now: they live as long as the process."""
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_BETWEEN_COLLECTIONS)
