"""Redrives a dead letter: builds the record to publish into the source topic, and says which letters it refuses (P9).

Only a topic that the service of the letter consumes is written. The source topic is a header, and anyone with access
to the dead-letter topic can write any header.
"""

from orderstream.dead_letters.letter import FROM_HEADER, JOB_HEADER
from orderstream.dead_letters.reader import StoredLetter
from orderstream.domain.saga import CONSUMER_GROUPS, topics_of
from orderstream.kafka.publication import Publication

TRIES_KEPT = 20
"""A record keeps the headers of its last tries, so that its size is bounded."""
SOURCES: dict[str, tuple[str, ...]] = {service: topics_of(service) for service in CONSUMER_GROUPS}
"""Service -> the topics into which its letters may be redriven."""


def position(service: str, partition: int, offset: int) -> str:
    """Return the position of a letter as `redriven-from` has it."""
    return f"{service}/{partition}@{offset}"


def tries_of(letter: StoredLetter) -> tuple[int, str | None, int | None]:
    """Return how often the record was redriven, and the letter and the job of the last time.

    The headers may be forged. A value that is not of our form counts as a try without its letter.
    """
    origins = [value for name, value in letter.headers if name == FROM_HEADER]
    jobs = [value for name, value in letter.headers if name == JOB_HEADER]
    origin = (origins[-1] or b"").decode("ascii", "replace")[:100] if origins else ""
    service, _, rest = origin.partition("/")
    partition, _, offset = rest.partition("@")
    is_ours = service in SOURCES and partition.isdecimal() and offset.isdecimal()
    return len(origins), origin if is_ours else None, number(jobs[-1] if jobs else None)


def number(text: bytes | str | None) -> int | None:
    """Return a number from 0 to 2^63 - 1, or None for any other text."""
    shown = text.decode("ascii", "replace") if isinstance(text, bytes) else text or ""
    return value if shown.isascii() and shown.isdecimal() and (value := int(shown[:20])) < 2**63 else None


def redriven(letter: StoredLetter, job_id: int) -> Publication:
    """Return the original record, with headers that name the letter and the job.

    Raises ValueError if the letter may not be redriven. `jobs` selects only letters that may be.
    """
    topic = letter.notes.get("topic", "")
    if topic not in SOURCES.get(letter.group, ()):
        raise ValueError(f"{letter.group} does not consume the topic {topic!r:.100}")
    if "cut-from" in letter.notes:
        raise ValueError("the record was too large to be kept whole")
    origins = [pair for pair in letter.headers if pair[0] == FROM_HEADER][-(TRIES_KEPT - 1) :]
    others = [pair for pair in letter.headers if pair[0] not in (FROM_HEADER, JOB_HEADER)]
    origin = position(letter.group, letter.partition, letter.offset).encode()
    headers: list[tuple[str, str | bytes | None]] = [*others, *origins]
    headers += [(FROM_HEADER, origin), (JOB_HEADER, str(job_id).encode())]
    return Publication(topic, letter.key, letter.value, headers)
