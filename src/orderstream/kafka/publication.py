"""A record to publish."""

from msgspec import Struct


class Publication(Struct, frozen=True):
    """One record to publish. The topic is named without KAFKA_TOPIC_PREFIX."""

    topic: str
    key: str | bytes | None
    value: bytes | str | None
    headers: list[tuple[str, str | bytes | None]]
