"""Which orders an operator wants to see: the filter of the list, with the limits of its values.

The API, the page and the command line share it. Its members have the names of the parameters in a URL.
"""

from typing import Annotated, cast, get_args
from urllib.parse import urlencode

from msgspec import Meta, Struct

from orderstream.domain.limits import SKU_MAX_CHARACTERS, USER_ID_MAX_CHARACTERS
from orderstream.domain.order import FailureReason, Status

STATUSES: tuple[Status, ...] = get_args(Status)
REASONS: tuple[FailureReason, ...] = get_args(FailureReason)
PAGE_DEFAULT = 50
PAGE_MAX = 200
"""Orders on one page of the list."""
STUCK_SECONDS = 60
"""An open order without progress for this time counts as stuck. An order normally settles within a second."""
AGE_MAX_SECONDS = 10**9

_ONE_STATUS = "|".join(STATUSES)
_NO_NUL = "^[^\\x00]*$"

StatusesIn = Annotated[
    str,
    Meta(
        description=f"One status, or several with commas between them: {', '.join(STATUSES)}.",
        pattern=rf"^({_ONE_STATUS})(,({_ONE_STATUS}))*$",
        max_length=100,
    ),
]
UserIdIn = Annotated[
    str,
    Meta(
        description="The orders of one user. No index serves it: this is a bounded search.",
        min_length=1,
        max_length=USER_ID_MAX_CHARACTERS,
        pattern=_NO_NUL,
    ),
]
SkuIn = Annotated[
    str,
    Meta(
        description="The orders that have a line with this SKU. No index serves it: this is a bounded search.",
        min_length=1,
        max_length=SKU_MAX_CHARACTERS,
        pattern=_NO_NUL,
    ),
]
ReasonIn = Annotated[
    str,
    Meta(description=f"FAILED orders with this reason, such as {', '.join(REASONS)}.", pattern="^[A-Z0-9_]{1,64}$"),
]
AgeIn = Annotated[int, Meta(ge=0, le=AGE_MAX_SECONDS)]
MinAgeIn = Annotated[AgeIn, Meta(description="Orders that were accepted at least this many seconds ago.")]
MaxAgeIn = Annotated[AgeIn, Meta(description="Orders that were accepted at most this many seconds ago.")]
StuckIn = Annotated[
    bool,
    Meta(
        description="true: only orders that are open for longer than normal. Such an order is PROCESSING or PAID, and"
        f" its row has not changed for {STUCK_SECONDS} s, or the watchdog has nudged it."
    ),
]
CompensatingIn = Annotated[
    bool,
    Meta(
        description="true: only aborted orders that are not compensated yet: the payment is not yet failed or voided,"
        " or the stock is not yet released."
    ),
]
TraceIn = Annotated[
    str,
    Meta(
        description="The order whose request had this trace id. No index serves it: this is a bounded search.",
        pattern="^[0-9a-f]{32}$",
    ),
]
LimitIn = Annotated[int, Meta(description="Orders on one page.", ge=1, le=PAGE_MAX)]


DeepIn = Annotated[
    bool,
    Meta(
        description="true: a bounded search may read more orders, and may take longer than a second. Use it with the"
        " `next` of a search that was not complete."
    ),
]
CursorIn = Annotated[str, Meta(description="The `next` of the page before.", max_length=100)]


class OrderFilter(Struct, frozen=True, kw_only=True):
    """The orders that an operator wants to see. A member that is not set filters nothing."""

    statuses: tuple[Status, ...] = ()
    user_id: str | None = None
    sku: str | None = None
    failure_reason: str | None = None
    min_age_seconds: int | None = None
    max_age_seconds: int | None = None
    stuck: bool = False
    compensating: bool = False
    trace_id: str | None = None


class OrderQuery(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The parameters of the list in a URL."""

    status: StatusesIn | None = None
    user_id: UserIdIn | None = None
    sku: SkuIn | None = None
    failure_reason: ReasonIn | None = None
    min_age_seconds: MinAgeIn | None = None
    max_age_seconds: MaxAgeIn | None = None
    stuck: StuckIn = False
    compensating: CompensatingIn = False
    trace_id: TraceIn | None = None
    limit: LimitIn = PAGE_DEFAULT
    cursor: CursorIn | None = None
    deep: DeepIn = False

    def __post_init__(self) -> None:
        """Raise ValueError if no age can be in the given range."""
        if (self.min_age_seconds or 0) > (AGE_MAX_SECONDS if self.max_age_seconds is None else self.max_age_seconds):
            raise ValueError("minAgeSeconds must not be greater than maxAgeSeconds")

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The statuses, each once."""
        names = self.status.split(",") if self.status else []
        return cast("tuple[Status, ...]", tuple(dict.fromkeys(names)))

    @property
    def wanted(self) -> OrderFilter:
        """The filter."""
        return OrderFilter(
            statuses=self.statuses,
            user_id=self.user_id,
            sku=self.sku,
            failure_reason=self.failure_reason,
            min_age_seconds=self.min_age_seconds,
            max_age_seconds=self.max_age_seconds,
            stuck=self.stuck,
            compensating=self.compensating,
            trace_id=self.trace_id,
        )

    def address(self, path: str, *, cursor: str | None = None, deep: bool = False) -> str:
        """Return the address of a page of this list, with the filter and another cursor."""
        given = {
            "status": ",".join(self.statuses),
            "userId": self.user_id,
            "sku": self.sku,
            "failureReason": self.failure_reason,
            "minAgeSeconds": self.min_age_seconds,
            "maxAgeSeconds": self.max_age_seconds,
            "stuck": "true" if self.stuck else None,
            "compensating": "true" if self.compensating else None,
            "traceId": self.trace_id,
            "limit": None if self.limit == PAGE_DEFAULT else self.limit,
            "cursor": cursor,
            "deep": "true" if deep else None,
        }
        query = urlencode({name: value for name, value in given.items() if value not in (None, "")})
        return f"{path}?{query}" if query else path
