"""Samples Valkey: whether it answers, and after how long."""

import time
from typing import Any

from msgspec import Struct

ANSWER_SECONDS = 1.0


class ValkeySample(Struct, frozen=True):
    """Valkey has answered a PING."""

    seconds: float


class ValkeyReader:
    """Keeps one connection, which it opens when it is first used."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._redis: Any = None

    def ask(self) -> ValkeySample:
        """Return a sample. Raises redis.RedisError."""
        if self._redis is None:
            self._redis = self._client()
        began = time.monotonic()
        self._redis.ping()
        return ValkeySample(time.monotonic() - began)

    def close(self) -> None:
        """Close the connection."""
        if self._redis is not None:
            self._redis.close()

    def _client(self) -> Any:
        import redis  # noqa: PLC0415 - slow to load, and needed only after the start
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415

        return redis.Redis.from_url(
            self._redis_url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            protocol=2,
        )
