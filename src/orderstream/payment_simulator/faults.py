"""The faults of the simulator, as one JSON object, and the draw that decides what happens to a call.

The setting SIMULATOR_FAULTS and `PATCH /simulator/faults` have the same members. All defaults are harmless.
"""

import math
import random
from decimal import Decimal
from hashlib import blake2b
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from orderstream.settings import Settings, SettingsError

P99_DEVIATIONS = 2.3263478740408408
"""The 99th percentile of a normal distribution is this many standard deviations above its mean."""
LATENCY_MAX_MS = 600_000.0
STUCK_KEYS_MAX = 10_000
DECLINED_AMOUNTS_MAX = 100
KEY_PATTERN = "^[A-Za-z0-9_-]{1,64}$"

Milliseconds = Annotated[float, Meta(ge=0, le=LATENCY_MAX_MS)]
Rate = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
Key = Annotated[str, Meta(pattern=KEY_PATTERN)]
Amount = Annotated[str, Meta(pattern=r"^[0-9]{1,12}(\.[0-9]{1,4})?$")]
Url = Annotated[str, Meta(pattern="^https?://[!-~]+$", max_length=1_000)]

Fate = Literal["refuse", "hang", "error_before", "error_after", "drop_after"]
_FATES: tuple[Fate, ...] = get_args(Fate)


class FaultsError(Exception):
    """Members are wrong. `problems` has one line for each, in the form `name: problem`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Faults(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the simulator does to calls that authorize or void. To a reader of the ledger it does only `down`.

    The rates from `refuse_rate` to `hang_rate` are shares of all calls, and at most one of them happens to a call.
    `decline_rate` and `pending_rate` are shares of keys, so that every call for a key has the same result.
    """

    latency_ms: Milliseconds = 0.0
    """The latency, its mean (normal) or its median (lognormal)."""
    latency_distribution: Literal["fixed", "normal", "lognormal"] = "fixed"
    latency_p99_ms: Milliseconds = msgspec.field(name="latencyP99Ms", default=0.0)
    """The 99th percentile of the latency, for normal and lognormal."""
    decline_rate: Rate = 0.0
    declined_amounts: Annotated[tuple[Amount, ...], Meta(max_length=DECLINED_AMOUNTS_MAX)] = ()
    """Amounts that are always declined, in any currency."""
    refuse_rate: Rate = 0.0
    """429, with Retry-After."""
    retry_after_seconds: Annotated[int, Meta(ge=0, le=3_600)] = 1
    error_before_rate: Rate = 0.0
    """500, and the ledger has not changed."""
    error_after_rate: Rate = 0.0
    """500, and the ledger has changed."""
    drop_after_rate: Rate = 0.0
    """The ledger has changed, and the connection ends without a response."""
    hang_rate: Rate = 0.0
    """No response ever. The ledger has not changed."""
    stuck_keys: Annotated[tuple[Key, ...], Meta(max_length=STUCK_KEYS_MAX)] = ()
    """Keys whose calls always hang."""
    pending_rate: Rate = 0.0
    pending_seconds: Seconds = 10.0
    """How long a payment is pending before it is authorized or declined."""
    key_lifetime_seconds: Annotated[float, Meta(gt=0, le=31_536_000)] = 86_400.0
    """How long the provider remembers a key. After that, the same key is charged again."""
    down: bool = False
    """503 for every call, also for readers of the ledger."""
    webhook_url: Url | None = None
    """Receives a POST with the key of each pending payment that has been decided."""


_FIELDS = {field.encode_name: field for field in msgspec.structs.fields(Faults)}


def changed(faults: Faults, json: bytes) -> Faults:
    """Return `faults` with the members of a JSON object in place of its own. Raises FaultsError with all problems."""
    try:
        members = msgspec.json.decode(json, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FaultsError([f"expected a JSON object: {error}"]) from None
    values: dict[str, Any] = {}
    problems = []
    for name, raw in members.items():
        field = _FIELDS.get(name)
        if field is None:
            problems.append(f"{name[:100]}: unknown; known are {', '.join(_FIELDS)}")
            continue
        try:
            values[field.name] = msgspec.json.decode(raw, type=field.type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problems.append(f"{name}: {error}")
    merged = msgspec.structs.replace(faults, **values)
    problems += _contradictions(merged)
    if problems:
        raise FaultsError(problems)
    return merged


def initial_faults(settings: Settings) -> Faults:
    """Return the faults of SIMULATOR_FAULTS. Raises SettingsError."""
    try:
        return changed(Faults(), settings.simulator_faults.encode())
    except FaultsError as error:
        raise SettingsError([f"SIMULATOR_FAULTS: {problem}" for problem in error.problems]) from None


def _contradictions(faults: Faults) -> list[str]:
    """Return the problems of members that do not fit together."""
    problems = []
    if faults.latency_distribution != "fixed" and faults.latency_p99_ms < faults.latency_ms:
        problems.append("latencyP99Ms: must be at least latencyMs if latencyDistribution is not fixed")
    if sum(_rates(faults)) > 1 + 1e-9:
        problems.append(
            "refuseRate, hangRate, errorBeforeRate, errorAfterRate, dropAfterRate: their sum must not exceed 1"
        )
    return problems


def _rates(faults: Faults) -> tuple[float, ...]:
    """Return the rates in the order of `Fate`."""
    return tuple(getattr(faults, f"{fate}_rate") for fate in _FATES)


class Draw:
    """Decides what happens to calls. `random_source` is passed in, so that a test can repeat a run."""

    def __init__(self, faults: Faults, random_source: random.Random) -> None:
        self._random = random_source
        self.faults = faults
        self._rates = _rates(faults)
        self._has_fates = any(self._rates)
        self._stuck = frozenset(faults.stuck_keys)
        self._declined_amounts = frozenset(map(Decimal, faults.declined_amounts))

    def fate(self, key: str) -> Fate | None:
        """Draw what happens to a call for this key. None: it is answered."""
        if key in self._stuck:
            return "hang"
        if not self._has_fates:
            return None
        left = self._random.random()
        for fate, rate in zip(_FATES, self._rates, strict=True):
            left -= rate
            if left < 0:
                return fate
        return None

    def latency_seconds(self) -> float:
        """Draw how long a call takes."""
        faults = self.faults
        if not faults.latency_ms or faults.latency_distribution == "fixed":
            return faults.latency_ms / 1_000
        if faults.latency_distribution == "normal":
            deviation = (faults.latency_p99_ms - faults.latency_ms) / P99_DEVIATIONS
            milliseconds = self._random.gauss(faults.latency_ms, deviation)
        else:
            deviation = math.log(faults.latency_p99_ms / faults.latency_ms) / P99_DEVIATIONS
            milliseconds = faults.latency_ms * math.exp(self._random.gauss(0, deviation))
        return min(max(milliseconds, 0.0), LATENCY_MAX_MS) / 1_000

    def is_declined(self, key: str, amount: Decimal) -> bool:
        """Say whether the provider declines this amount, or this key."""
        if amount in self._declined_amounts:
            return True
        rate = self.faults.decline_rate
        return bool(rate) and share_of(key, b"decline") < rate

    def is_pending(self, key: str) -> bool:
        """Say whether the customer or the bank must decide about this key."""
        rate = self.faults.pending_rate
        return bool(rate) and share_of(key, b"pending") < rate


def share_of(key: str, purpose: bytes) -> float:
    """Return a number in [0, 1) that is constant for a key and a purpose, and evenly distributed over keys."""
    return int.from_bytes(blake2b(key.encode(), digest_size=7, person=purpose).digest(), "big") / 2**56
