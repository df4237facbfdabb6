"""What a payment can be asked and can answer. The provider speaks these types, whoever it is."""

from datetime import datetime
from decimal import Decimal
from typing import Literal

from msgspec import Struct

State = Literal["PENDING", "AUTHORIZED", "FAILED", "VOIDING", "VOIDED"]


class Charge(Struct, frozen=True):
    """A request for money; `order_id` is the provider's idempotency key, so that asking again never charges twice."""

    order_id: str
    amount: Decimal
    currency: str
    accepted_at: datetime


class Authorized(Struct, frozen=True):
    """The amount is held for us."""


class Declined(Struct, frozen=True):
    """The provider decided: no."""


class Pending(Struct, frozen=True):
    """The customer or the bank has not decided yet; ask again."""


class Voided(Struct, frozen=True):
    """The charge is undone, and the key can never carry one again."""


class NothingToVoid(Struct, frozen=True):
    """There was no charge, and the key can never carry one."""


class Unanswered(Struct, frozen=True):
    """Nobody knows: no answer came in time. Never guessed to be a decline, asked again with the same key."""


class NotAsked(Struct, frozen=True):
    """The time was up before the provider could be asked: this was no attempt."""


Outcome = Authorized | Declined | Pending | Unanswered | NotAsked
