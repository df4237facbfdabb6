"""Makes Python's garbage collection rare in a service process."""

import gc

NEW_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python's default is 700. The records of a batch are rarely part of a reference cycle."""


def collect_rarely() -> None:
    """Collect less often, and exclude the objects that exist now, because they live as long as the process."""
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_BETWEEN_COLLECTIONS)
