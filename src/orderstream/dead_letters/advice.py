"""Says what an operator should do next about a dead letter, by its reason. docs/operations.md has the same rules."""

from orderstream.kafka.envelope import Reason

_FOREIGN = "No OrderStream service wrote this record, or it was damaged: find the writer, then discard the letter."
_NEWER = "A newer version wrote this record, or it is in the wrong topic: upgrade the service, then redrive the letter."

ADVICE: dict[Reason, str] = {
    "NO_KEY": _FOREIGN,
    "NO_VALUE": _FOREIGN,
    "NOT_JSON": _FOREIGN,
    "BAD_PAYLOAD": _FOREIGN,
    "KEY_MISMATCH": _FOREIGN,
    "UNKNOWN_TYPE": _NEWER,
    "UNKNOWN_VERSION": _NEWER,
    "UNKNOWN_ORDER": "This database has no such order: redrive the letter only if the order is there now.",
    "NOT_DECIDED": (
        "The record contradicts the table of the service that it names: find the writer, remove its access to the"
        " topic, then discard the letter."
    ),
    "FAILED": (
        "Fix the defect that the error names. The watchdog repeats the event of an open order by itself, so redrive the"
        " letter only if you cannot wait."
    ),
}
_UNKNOWN = "This version does not know the reason: read the error and the bytes before you redrive or discard it."


def advice_for(reason: str) -> str:
    """Return one or two sentences about the next step. The reason may be any text that a producer wrote."""
    for known, sentence in ADVICE.items():
        if known == reason:
            return sentence
    return _UNKNOWN
