"""The cache of settled orders in Redis (P8, P11): a copy of what Postgres says, never more, and never in the way.

One key, `order:{id}`, holds one of three things:

- `{...}`, an entry: the order's JSON as the API answers it, for 60 to 120 s;
- `lease:<token>`: the order is not cached, and one reader may fill it with what it reads from now on;
- `barred:<token>`: someone is about to change a settled order, and nobody may fill it until they are done.

A reader fills only where its own lease still stands, so whoever deletes or bars a key makes all earlier reads
worthless. A bar is taken while the order's row lock is held, and lifted only by whoever set it, so the end of one
change never lifts the bar of the next. While Redis cannot be reached nothing can be barred or deleted, and an entry
may outlive a change: what could not be deleted is remembered (in bounds), and deleted as soon as Redis answers again.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import redis
import redis.asyncio
from msgspec import Struct
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

TTL_MIN_SECONDS = 60
TTL_MAX_SECONDS = 120
LEASE_SECONDS = 10
BAR_SECONDS = 60
"""Longer than a transaction can take: Postgres ends one that is idle for 45 s, and a statement after 10 s."""

BREAKER_SECONDS = 1.0
OWED_MAX = 10_000
KEYS_MAX = 1_000
"""Keys in one command."""

DONE = True
"""What a script that returns nothing returned."""

_LOOK_UP = """
local found = {}
for i, key in ipairs(KEYS) do
    found[i] = redis.call('GET', key)
    if not found[i] then
        redis.call('SET', key, ARGV[1], 'EX', ARGV[2])
    end
end
return found
"""
_FILL = """
for i, key in ipairs(KEYS) do
    if redis.call('GET', key) == ARGV[3 * i - 2] then
        if ARGV[3 * i - 1] == '' then
            redis.call('DEL', key)
        else
            redis.call('SET', key, ARGV[3 * i - 1], 'EX', ARGV[3 * i])
        end
    end
end
"""
_BAR = """
for _, key in ipairs(KEYS) do
    redis.call('SET', key, ARGV[1], 'EX', ARGV[2])
end
"""
_DELETE = """
for _, key in ipairs(KEYS) do
    local held = redis.call('GET', key)
    if held and (string.sub(held, 1, 7) ~= 'barred:' or held == ARGV[1]) then
        redis.call('DEL', key)
    end
end
"""


_log = logging.getLogger(__name__)


class Entry(Struct, frozen=True):
    """The order's JSON."""

    body: bytes


class Lease(Struct, frozen=True):
    """Nothing is cached; the holder of `token` may fill it with what it reads after this."""

    token: str


Taken = Literal["leased", "barred", "unreachable"]
"""Why there is neither: another reader fills it, someone changes it, or Redis does not answer."""

Lookup = Entry | Lease | Taken


class Fill(Struct, frozen=True):
    """What to put where a lease stands; without a body the lease is given back."""

    order_id: str
    token: str
    body: bytes = b""


class Breaker:
    """Spares a failed Redis, and its callers' time: after a failure nobody asks for `BREAKER_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Say whether not to ask."""
        return self._clock() < self._open_until

    def trip(self, error: Exception) -> None:
        """Note a failure."""
        self._open_until = self._clock() + BREAKER_SECONDS
        _log.warning("unreachable: %s", str(error) or repr(error))


class Owed:
    """The orders whose deletion Redis has yet to hear of; the oldest are given up beyond OWED_MAX."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str]) -> None:
        """Remember these orders."""
        self._ids.update(dict.fromkeys(ids))
        for order_id in list(itertools.islice(self._ids, max(0, len(self._ids) - OWED_MAX))):
            del self._ids[order_id]

    def pay(self, ids: Sequence[str]) -> None:
        """Forget these orders: they are deleted."""
        for order_id in ids:
            self._ids.pop(order_id, None)


class AsyncCache:
    """Both sides for asyncio. No call takes longer than the budget, and none raises for what Redis does."""

    def __init__(self, redis_url: str, budget_seconds: float) -> None:
        self._budget_seconds = budget_seconds
        self._redis: Any = redis.asyncio.Redis.from_url(
            redis_url, retry=AsyncRetry(NoBackoff(), 0), **_connection_options(budget_seconds)
        )
        self._bar = _new_bar()
        self._owed = Owed()
        self._paying: asyncio.Task[None] | None = None
        self.breaker = Breaker()

    async def close(self) -> None:
        """Close the connections."""
        if self._paying is not None:
            self._paying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._paying
        await self._redis.aclose()

    async def look_up(self, ids: Sequence[str]) -> list[Lookup]:
        """Return what is cached of each order; where nothing is, a lease on it."""
        token = f"lease:{secrets.token_hex(8)}"
        found = await self._run(_LOOK_UP, ids, token, LEASE_SECONDS) if await self._pay() else None
        if not isinstance(found, list):
            return ["unreachable"] * len(ids)
        return [_lookup(value, token) for value in found]

    async def fill(self, fills: Sequence[Fill]) -> None:
        """Put each body where its lease still stands."""
        arguments: list[Any] = []
        for fill in fills:
            ttl = random.randint(TTL_MIN_SECONDS, TTL_MAX_SECONDS)  # noqa: S311 - spreads expiry, guards nothing
            arguments += (fill.token, fill.body, ttl)
        await self._run(_FILL, [fill.order_id for fill in fills], *arguments)

    async def bar(self, ids: Sequence[str]) -> bool:
        """Keep settled orders out of the cache, before their change commits and while their rows are locked.

        `delete` lifts the bar; without it the bar ends by itself after BAR_SECONDS. False if Redis did not answer.
        """
        return not ids or await self._run(_BAR, ids, self._bar, BAR_SECONDS) is not None

    async def delete(self, ids: Sequence[str]) -> bool:
        """Forget orders, after their change committed.

        False if Redis did not answer: it is then tried again by the clock, and before anything is looked up.
        """
        self._owed.add(ids)
        paid = await self._pay()
        if not paid and self._paying is None:
            self._paying = asyncio.create_task(self._keep_paying())
        return paid

    async def _pay(self) -> bool:
        while due := list(itertools.islice(self._owed, KEYS_MAX)):
            if await self._run(_DELETE, due, self._bar) is None:
                return False
            self._owed.pay(due)
        return True

    async def _keep_paying(self) -> None:
        while not await self._pay():  # noqa: ASYNC110 - Redis tells nobody that it is back
            await asyncio.sleep(BREAKER_SECONDS)
        self._paying = None

    async def _run(self, script: str, ids: Sequence[str], *arguments: Any) -> Any:
        """Run a script, and return what it did or DONE; None if Redis did not answer."""
        if self.breaker.is_open:
            return None
        try:
            async with asyncio.timeout(self._budget_seconds):
                found = await self._redis.eval(script, len(ids), *map(key, ids), *arguments)
        except (redis.RedisError, OSError, TimeoutError) as error:
            self.breaker.trip(error)
            return None
        return DONE if found is None else found


class CacheInvalidator:
    """The changing side, for threads that block. Nothing raises for what Redis does: the answer says whether it did."""

    def __init__(self, redis_url: str, budget_seconds: float) -> None:
        self._redis: Any = redis.Redis.from_url(
            redis_url, retry=Retry(NoBackoff(), 0), **_connection_options(budget_seconds)
        )
        self._bar = _new_bar()
        self._owed = Owed()
        self.breaker = Breaker()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def bar(self, ids: Sequence[str]) -> bool:
        """Keep settled orders out of the cache, before their change commits and while their rows are locked.

        `delete` lifts the bar; without it the bar ends by itself after BAR_SECONDS. False if Redis did not answer.
        """
        return self._all(_BAR, ids, self._bar, BAR_SECONDS)

    def delete(self, ids: Sequence[str]) -> bool:
        """Forget orders, after their change committed. False if Redis did not answer; a later call then does it too."""
        self._owed.add(ids)
        due = list(self._owed)
        done = self._all(_DELETE, due, self._bar)
        if done:
            self._owed.pay(due)
        return done

    def _all(self, script: str, ids: Sequence[str], *arguments: Any) -> bool:
        return all(
            self._run(script, ids[start : start + KEYS_MAX], *arguments) for start in range(0, len(ids), KEYS_MAX)
        )

    def _run(self, script: str, ids: Sequence[str], *arguments: Any) -> bool:
        if self.breaker.is_open:
            return False
        try:
            self._redis.eval(script, len(ids), *map(key, ids), *arguments)
        except (redis.RedisError, OSError) as error:
            self.breaker.trip(error)
            return False
        return True


def key(order_id: str) -> str:
    """Return the key of an order."""
    return f"order:{order_id}"


def _new_bar() -> str:
    """Return a bar of this process's own: it makes its changes of one order one after the other, under the row lock."""
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
