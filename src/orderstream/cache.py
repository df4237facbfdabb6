"""The cache of settled orders in Redis (P8, P11): a copy of what Postgres says, never more, and never in the way.

One key, `order:{id}`, holds one of three things:

- `{...}`, an entry: the order's JSON as the API answers it, for 60 to 120 s;
- `lease:<token>`: the order is not cached, and one reader may fill it with what it reads from now on;
- `barred:<token>`: someone is about to change a settled order, and nobody may fill it until they are done.

A reader fills only where its own lease still stands, so whoever deletes or bars a key makes all earlier reads
worthless. A bar is taken while the order's row lock is held, and lifted only by whoever set it, so the end of one
change never lifts the bar of the next. While Redis cannot be reached nothing can be barred or deleted, and an entry
may outlive a change: what could not be deleted is remembered (in bounds), and deleted as soon as Redis answers again.

A Redis that serves reads may still refuse writes: out of memory, a replica, a full disk, a user without the right. Then
no process can delete an entry. So every look-up first does what a deletion needs, on PROBE_KEY: if Redis refuses that,
Postgres answers.
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
PROBE_KEY = "order:probe"
"""A key that never exists. Look-ups write to it and change nothing. It has the prefix of orders, and their rights."""

DONE = True
"""What a script that returns nothing returned."""

# A key of another type, made by another program, counts as barred: no reader fills it, and a deletion passes over it.
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
# The last key is PROBE_KEY. SET comes before DEL: a script that has deleted something may write without memory for it.
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
# DEL comes first: it is allowed without memory, and after it so is SET.
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
    """Nothing is cached; the holder of `token` may fill it with what it reads after this."""

    token: str


Taken = Literal["leased", "barred", "unreachable"]
"""Why there is neither: another reader fills it, someone changes it, or Redis does not answer or refuses."""

Lookup = Entry | Lease | Taken


class Fill(Struct, frozen=True):
    """What to put where a lease stands; without a body the lease is given back."""

    order_id: str
    token: str
    body: bytes = b""


class Breaker:
    """Spares a failed Redis, and its callers' time: after a failure nobody asks for `BREAKER_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, says: str = "unreachable") -> None:
        self._clock = clock
        self._says = says
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Say whether not to ask."""
        return self._clock() < self._open_until

    def trip(self, error: Exception) -> None:
        """Note a failure."""
        self._open_until = self._clock() + BREAKER_SECONDS
        _log.warning("%s: %s", self._says, str(error) or repr(error))


class Owed:
    """The orders whose deletion Redis has yet to hear of; the oldest are given up beyond OWED_MAX.

    Each has the number of its last change: a deletion that began before that change does not pay for it.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._last = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, ids: Sequence[str]) -> None:
        """Remember these orders."""
        self._last += 1
        for order_id in ids:
            self._numbers.pop(order_id, None)
            self._numbers[order_id] = self._last
        for order_id in list(itertools.islice(self._numbers, max(0, len(self._numbers) - OWED_MAX))):
            del self._numbers[order_id]

    def due(self) -> dict[str, int]:
        """Return the oldest orders, as many as one command takes, with their numbers."""
        return dict(itertools.islice(self._numbers.items(), KEYS_MAX))

    def pay(self, due: Mapping[str, int]) -> None:
        """Forget what `due` returned: it is deleted. What changed since is still owed."""
        for order_id, number in due.items():
            if self._numbers.get(order_id) == number:
                del self._numbers[order_id]


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
        self.refusal = Breaker(says="refused")
        """Stops look-ups only: what has changed must still be deleted, and a refusal costs no time."""

    @property
    def is_bypassed(self) -> bool:
        """Say whether look-ups are not worth asking."""
        return self.breaker.is_open or self.refusal.is_open

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
        found = None
        if not self.is_bypassed and await self._pay():
            found = await self._run(_LOOK_UP, [*map(key, ids), PROBE_KEY], token, LEASE_SECONDS)
        if not isinstance(found, list):
            return ["unreachable"] * len(ids)
        return [_lookup(value, token) for value in found]

    async def fill(self, fills: Sequence[Fill]) -> None:
        """Put each body where its lease still stands."""
        arguments: list[Any] = []
        for fill in fills:
            ttl = random.randint(TTL_MIN_SECONDS, TTL_MAX_SECONDS)  # noqa: S311 - spreads expiry, guards nothing
            arguments += (fill.token, fill.body, ttl)
        await self._run(_FILL, [key(fill.order_id) for fill in fills], *arguments)

    async def bar(self, ids: Sequence[str]) -> bool:
        """Keep settled orders out of the cache, before their change commits and while their rows are locked.

        `delete` lifts the bar; without it the bar ends by itself after BAR_SECONDS. False if Redis did not do it.
        """
        return not ids or await self._run(_BAR, [*map(key, ids)], self._bar, BAR_SECONDS) is not None

    async def delete(self, ids: Sequence[str]) -> bool:
        """Forget orders, after their change committed.

        False if Redis did not do it: it is then tried again by the clock, and before anything is looked up.
        """
        self._owed.add(ids)
        paid = await self._pay()
        if not paid and self._paying is None:
            self._paying = asyncio.create_task(self._keep_paying())
        return paid

    async def _pay(self) -> bool:
        while due := self._owed.due():
            if await self._run(_DELETE, [*map(key, due)], self._bar) is None:
                return False
            self._owed.pay(due)
        return True

    async def _keep_paying(self) -> None:
        try:
            while not await self._pay():  # noqa: ASYNC110 - Redis sends no notice when it is back
                await asyncio.sleep(BREAKER_SECONDS)
        finally:
            self._paying = None

    async def _run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script, and return what it did or DONE; None if Redis did not answer, or refused."""
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
        """Give up idle connections: the next one may lead to a server that was promoted meanwhile."""
        with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._budget_seconds):
                await self._redis.connection_pool.disconnect(inuse_connections=False)


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

        `delete` lifts the bar; without it the bar ends by itself after BAR_SECONDS. False if Redis did not do it.
        """
        return all(
            self._run(_BAR, ids[start : start + KEYS_MAX], self._bar, BAR_SECONDS)
            for start in range(0, len(ids), KEYS_MAX)
        )

    def delete(self, ids: Sequence[str]) -> bool:
        """Forget orders, after their change committed. False if Redis did not do it; a later call then does it too."""
        self._owed.add(ids)
        while due := self._owed.due():
            if not self._run(_DELETE, list(due), self._bar):
                return False
            self._owed.pay(due)
        return True

    def _run(self, script: str, ids: Sequence[str], *arguments: Any) -> bool:
        if self.breaker.is_open:
            return False
        try:
            self._redis.eval(script, len(ids), *map(key, ids), *arguments)
        except redis.ResponseError as error:
            # A refusal costs no time, and the server may be another one by the next change.
            _log.warning("refused: %s", error)
            with contextlib.suppress(redis.RedisError, OSError):
                self._redis.connection_pool.disconnect(inuse_connections=False)
            return False
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
