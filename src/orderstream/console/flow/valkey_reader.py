"""Samples Valkey: whether it answers, and after how long."""

import time
from typing import Any

import redis
from msgspec import Struct
from redis.backoff import NoBackoff
from redis.retry import Retry

ANSWER_SECONDS = 1.0


class ValkeySample(Struct, frozen=True):
    """Valkey has answered a PING."""

    seconds: float


class ValkeyReader:
    """Keeps one connection."""

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            redis_url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            protocol=2,
        )

    def ask(self) -> ValkeySample:
        """Return a sample. Raises redis.RedisError."""
        began = time.monotonic()
        self._redis.ping()
        return ValkeySample(time.monotonic() - began)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
