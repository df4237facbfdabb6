"""The cache of settled orders in Redis (P8, P11). It holds copies only, and no request depends on it.

The key `order:{id}` holds one of three values:

- `{...}`, an entry: the order's JSON as the API returns it, for 60 to 120 s.
- `lease:<token>`: the order is not cached. One reader holds the lease and may fill the key with its next read.
- `barred:<token>`: a process is about to change a settled order. No reader may fill the key until the change is done.

A reader fills a key only while its own lease is there. A process that deletes or bars the key removes the lease, so
the result of an earlier read can never overwrite a later change. A process sets a bar while it holds the order's row
lock, and only the same process lifts it. The end of one change therefore never lifts the bar of the next change.

While Redis is down, no key can be barred or deleted, and an entry may outlive a change. The process therefore keeps a
limited list of pending deletes and sends them as soon as Redis answers again.

Redis may serve reads and still refuse writes, for example if it is out of memory or became a replica. No process can
delete an entry then. Every lookup therefore first tries a write and a delete on PROBE_KEY. If Redis refuses them, the
order is read from Postgres.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, Literal, Self

import redis
import redis.asyncio
from msgspec import Struct
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from orderstream.telemetry import databases

TTL_MIN_SECONDS = 60
TTL_MAX_SECONDS = 120
LEASE_SECONDS = 10
BAR_SECONDS = 60
"""Longer than a transaction can take: Postgres ends a transaction that is idle for 45 s, and a statement after 10 s."""

BREAKER_SECONDS = 1.0
PENDING_DELETES_MAX = 10_000
KEYS_MAX = 1_000
"""Keys in one Redis command."""
PROBE_KEY = "order:probe"
"""A key that never exists. Lookups write to it without effect. Its prefix gives it the access rights of order keys."""

DONE = True
"""The result of a script that returns nothing."""

# A key of another type belongs to another program. It counts as barred: no reader fills it, and no delete removes it.
_VALUE = """
local function value(key)
    local found = redis.pcall('GET', key)
    if type(found) ~= 'table' then
        return found
    end
    if string.find(found.err, 'WRONGTYPE', 1, true) then
        return 'barred:'
    end
    return redis.call('GET', key)
end
"""
# The last key is PROBE_KEY. SET precedes DEL, because after a DEL a script may write even if Redis is out of memory.
_LOOK_UP = (
    _VALUE
    + """
local probe = KEYS[#KEYS]
redis.call('SET', probe, '', 'XX')
redis.call('DEL', probe)
local found = {}
for i = 1, #KEYS - 1 do
    local key = KEYS[i]
    found[i] = value(key)
    if not found[i] then
        redis.call('SET', key, ARGV[1], 'EX', ARGV[2])
    end
end
return found
"""
)
_FILL = (
    _VALUE
    + """
for i, key in ipairs(KEYS) do
    if value(key) == ARGV[3 * i - 2] then
        if ARGV[3 * i - 1] == '' then
            redis.call('DEL', key)
        else
            redis.call('SET', key, ARGV[3 * i - 1], 'EX', ARGV[3 * i])
        end
    end
end
"""
)
# DEL comes first. Redis without free memory refuses a script that begins with SET. After a DEL it also runs the SET.
_BAR = """
for _, key in ipairs(KEYS) do
    redis.call('DEL', key)
    redis.call('SET', key, ARGV[1], 'EX', ARGV[2])
end
"""
_DELETE = (
    _VALUE
    + """
for _, key in ipairs(KEYS) do
    local held = value(key)
    if held and (string.sub(held, 1, 7) ~= 'barred:' or held == ARGV[1]) then
        redis.call('DEL', key)
    end
end
"""
)


_log = logging.getLogger(__name__)


class Entry(Struct, frozen=True):
    """The order's JSON."""

    body: bytes


class Lease(Struct, frozen=True):
    """The order is not cached. The holder of `token` may fill the key with a read that begins after this."""

    token: str


NoLease = Literal["leased", "barred", "unreachable"]
"""Another reader holds the lease, a process changes the order, or Redis does not answer or refuses the lookup."""

Lookup = Entry | Lease | NoLease


class Fill(Struct, frozen=True):
    """The entry to write while the lease is there. Without a body, the lease is given back."""

    order_id: str
    token: str
    body: bytes = b""


class Breaker:
    """Stops calls to Redis for BREAKER_SECONDS after a failure, so that callers do not wait for a failed server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, log_event: str = "unreachable") -> None:
        self._clock = clock
        self._log_event = log_event
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls are stopped now."""
        return self._clock() < self._open_until

    def trip(self, error: Exception) -> None:
        """Stop calls after a failure, and log the error."""
        self._open_until = self._clock() + BREAKER_SECONDS
        _log.warning("%s: %s", self._log_event, str(error) or repr(error))


class PendingDeletes:
    """The orders whose keys still have to be deleted. Beyond PENDING_DELETES_MAX the oldest are dropped.

    Each order has the number of its last change. A delete that began before this
    change does not remove the order from the list.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._last = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, ids: Sequence[str]) -> None:
        """Add orders that have changed."""
        self._last += 1
        for order_id in ids:
            self._numbers.pop(order_id, None)
            self._numbers[order_id] = self._last
        for order_id in list(itertools.islice(self._numbers, max(0, len(self._numbers) - PENDING_DELETES_MAX))):
            del self._numbers[order_id]

    def next_batch(self) -> dict[str, int]:
        """Return the oldest orders with their change numbers, at most KEYS_MAX."""
        return dict(itertools.islice(self._numbers.items(), KEYS_MAX))

    def drop(self, ids: Sequence[str]) -> None:
        """Remove orders whose keys no longer hold an entry."""
        for order_id in ids:
            self._numbers.pop(order_id, None)

    def confirm(self, deleted: Mapping[str, int]) -> None:
        """Remove the orders of a batch whose keys are deleted. Orders that changed since then stay pending."""
        for order_id, number in deleted.items():
            if self._numbers.get(order_id) == number:
                del self._numbers[order_id]


class AsyncCache:
    """The cache for asyncio: it reads and changes entries. No call exceeds the budget or raises an error of Redis.

    Used as a context manager, which closes the connections.
    """

    def __init__(self, redis_url: str, budget_seconds: float) -> None:
        self._budget_seconds = budget_seconds
        self._redis: Any = redis.asyncio.Redis.from_url(
            redis_url, retry=AsyncRetry(NoBackoff(), 0), **_connection_options(budget_seconds)
        )
        self.lookups, self.fills = databases.redis(redis_url, "look_up"), databases.redis(redis_url, "fill")
        """Describe `look_up` and `fill` for spans."""
        self._bar = _new_bar()
        self._pending_deletes = PendingDeletes()
        self._flush_task: asyncio.Task[None] | None = None
        self.breaker = Breaker()
        self.refusal = Breaker(log_event="refused")
        """Stops lookups only. Changed orders must still be deleted, and a refusal takes no time."""

    @property
    def is_bypassed(self) -> bool:
        """Whether lookups are stopped now."""
        return self.breaker.is_open or self.refusal.is_open

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Deletes that are still pending are dropped."""
        if self._flush_task is not None:
            self._flush_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flush_task
        await self._redis.aclose()

    async def look_up(self, ids: Sequence[str]) -> list[Lookup]:
        """Return for each order its entry, a lease on its key, or the reason why there is neither."""
        token = f"lease:{secrets.token_hex(8)}"
        found = None
        if not self.is_bypassed and await self._flush():
            found = await self._run(_LOOK_UP, [*map(key, ids), PROBE_KEY], token, LEASE_SECONDS)
        if not isinstance(found, list):
            return ["unreachable"] * len(ids)
        return [_lookup(value, token) for value in found]

    async def fill(self, fills: Sequence[Fill]) -> None:
        """Write each body, if its lease is still there."""
        arguments: list[Any] = []
        for fill in fills:
            ttl = random.randint(TTL_MIN_SECONDS, TTL_MAX_SECONDS)  # noqa: S311 - spreads expiry, guards nothing
            arguments += (fill.token, fill.body, ttl)
        await self._run(_FILL, [key(fill.order_id) for fill in fills], *arguments)

    async def bar(self, ids: Sequence[str]) -> bool:
        """Bar settled orders in the cache. Call it before their change commits and while their rows are locked.

        `delete` lifts the bar. Otherwise the bar expires after BAR_SECONDS. Return False if Redis did not set it.
        """
        return not ids or await self._run(_BAR, [*map(key, ids)], self._bar, BAR_SECONDS) is not None

    async def delete(self, ids: Sequence[str]) -> bool:
        """Delete orders from the cache after their change has committed.

        Return False if Redis did not delete all of them. The deletes are then retried every BREAKER_SECONDS, and
        before every lookup.
        """
        self._pending_deletes.add(ids)
        flushed = await self._flush()
        if not flushed and self._flush_task is None:
            self._flush_task = asyncio.create_task(self._flush_until_done())
        return flushed

    async def _flush(self) -> bool:
        while batch := self._pending_deletes.next_batch():
            if await self._run(_DELETE, [*map(key, batch)], self._bar) is None:
                return False
            self._pending_deletes.confirm(batch)
        return True

    async def _flush_until_done(self) -> None:
        try:
            while not await self._flush():  # noqa: ASYNC110 - Redis sends no notice when it is back
                await asyncio.sleep(BREAKER_SECONDS)
        finally:
            self._flush_task = None

    async def _run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script. Return its result or DONE, or None if Redis did not answer or refused."""
        if self.breaker.is_open:
            return None
        try:
            async with asyncio.timeout(self._budget_seconds):
                found = await self._redis.eval(script, len(keys), *keys, *arguments)
        except redis.ResponseError as error:
            self.refusal.trip(error)
            await self._reconnect()
            return None
        except (redis.RedisError, OSError, TimeoutError) as error:
            self.breaker.trip(error)
            return None
        return DONE if found is None else found

    async def _reconnect(self) -> None:
        """Close the idle connections. A new connection may lead to a server that has been promoted meanwhile."""
        with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._budget_seconds):
                await self._redis.connection_pool.disconnect(inuse_connections=False)


class CacheInvalidator:
    """The changing side for blocking threads. No method raises an error of Redis. Each returns whether it succeeded.

    One thread changes orders, and another thread may call `delete(())` to retry deletes. No such delete lifts the bar
    that the first thread has just set.
    """

    def __init__(self, redis_url: str, budget_seconds: float) -> None:
        self._redis: Any = redis.Redis.from_url(
            redis_url, retry=Retry(NoBackoff(), 0), **_connection_options(budget_seconds)
        )
        self._bar = _new_bar()
        self._pending_deletes = PendingDeletes()
        self._lock = Lock()
        """Held while Redis is called and the pending deletes change, for at most the budget of one call."""
        self.breaker = Breaker()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def bar(self, ids: Sequence[str]) -> bool:
        """Bar settled orders in the cache. Call it before their change commits and while their rows are locked.

        `delete` lifts the bar. Otherwise the bar expires after BAR_SECONDS. Return False if Redis did not set it.
        """
        return all(self._bar_some(ids[start : start + KEYS_MAX]) for start in range(0, len(ids), KEYS_MAX))

    def _bar_some(self, ids: Sequence[str]) -> bool:
        with self._lock:
            done = self._run(_BAR, ids, self._bar, BAR_SECONDS)
            if done:
                # The bar has replaced the entry. A pending delete would only lift the bar before the change commits.
                self._pending_deletes.drop(ids)
        return done

    def delete(self, ids: Sequence[str]) -> bool:
        """Delete orders from the cache after their change has committed.

        Return False if Redis did not delete all of them. The next call then retries the rest.
        """
        with self._lock:
            self._pending_deletes.add(ids)
        while True:
            with self._lock:
                batch = self._pending_deletes.next_batch()
                if not batch:
                    return True
                if not self._run(_DELETE, list(batch), self._bar):
                    return False
                self._pending_deletes.confirm(batch)

    def _run(self, script: str, ids: Sequence[str], *arguments: Any) -> bool:
        if self.breaker.is_open:
            return False
        try:
            self._redis.eval(script, len(ids), *map(key, ids), *arguments)
        except redis.ResponseError as error:
            # No breaker: a refusal takes no time, and the next change may reach another server.
            _log.warning("refused: %s", error)
            with contextlib.suppress(redis.RedisError, OSError):
                self._redis.connection_pool.disconnect(inuse_connections=False)
            return False
        except (redis.RedisError, OSError) as error:
            self.breaker.trip(error)
            return False
        return True


def key(order_id: str) -> str:
    """Return the Redis key of an order."""
    return f"order:{order_id}"


def _new_bar() -> str:
    """Return the bar of this process. One is enough, because a process changes an order under its row lock."""
    return f"barred:{secrets.token_hex(8)}"


def _lookup(value: bytes | None, token: str) -> Lookup:
    if value is None:
        return Lease(token)
    if value.startswith(b"lease:"):
        return "leased"
    if value.startswith(b"barred:"):
        return "barred"
    return Entry(value)


def _connection_options(budget_seconds: float) -> Mapping[str, Any]:
    return {"socket_timeout": budget_seconds, "socket_connect_timeout": budget_seconds, "protocol": 2}
