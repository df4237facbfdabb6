"""The operations below `/api/play`."""

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from orderstream.console.actions.log import REASON_MAX_CHARACTERS, Action, recorded
from orderstream.console.context import Console
from orderstream.console.play.desk import Desk
from orderstream.console.play.orders import DEFAULT_MIX, KINDS, Kind, KindName
from orderstream.console.play.runner import RATE_MAX, RATE_MIN, SECONDS_MAX, Plan, RunView
from orderstream.console.play.simulator import (
    PRESETS,
    Members,
    Preset,
    RefusedFaultsError,
    SimulatorError,
    change_faults,
    faults_at,
)
from orderstream.console.play.stock import FULL_UNITS, fill_up
from orderstream.console.processes.api import stack_of
from orderstream.console.web.api import Call, Operation
from orderstream.http_server.problems import Problem
from orderstream.inventory_worker.stock_commands import StockError

_SHARE_MAX = 1_000
_MEMBERS_MAX = 50


class PlayView(Struct, frozen=True, rename="camel"):
    """The play desk: its run (null if this console has placed no orders), and the payment simulator.

    `simulatorUrl` is null if the stack runs none. `faults` is null if it does not answer; `faultsError` says why.
    """

    run: RunView | None
    kinds: list[Kind]
    simulator_url: str | None
    faults: Members | None
    faults_error: str | None
    presets: list[Preset]


class StartPlay(Struct, frozen=True, forbid_unknown_fields=True):
    """Orders a second, for how many seconds, and the share of each kind. Kinds that are left out are not placed."""

    rate: Annotated[float, Meta(ge=RATE_MIN, le=RATE_MAX)] = 3.0
    seconds: Annotated[float, Meta(ge=1, le=SECONDS_MAX)] = 300.0
    mix: dict[KindName, Annotated[int, Meta(ge=0, le=_SHARE_MAX)]] = field(default_factory=lambda: dict(DEFAULT_MIX))
    reason: Annotated[str, Meta(max_length=REASON_MAX_CHARACTERS)] = ""


class NoBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing more is needed."""


class ChangeFaults(Struct, frozen=True, forbid_unknown_fields=True):
    """The name of a preset, or members of the simulator's faults (docs/payment-simulator.md), or both."""

    preset: str | None = None
    faults: Annotated[dict[str, Any], Meta(max_length=_MEMBERS_MAX)] = {}
    reason: Annotated[str, Meta(max_length=REASON_MAX_CHARACTERS)] = ""


class Restock(Struct, frozen=True, forbid_unknown_fields=True):
    """Why."""

    reason: Annotated[str, Meta(max_length=REASON_MAX_CHARACTERS)] = ""


class PlayAction(Struct, frozen=True, rename="camel"):
    """The action that records what was done."""

    action_id: int


class FaultsChanged(Struct, frozen=True, rename="camel"):
    """The faults as they are now, and the action that records the change."""

    action_id: int
    faults: Members


class Restocked(Struct, frozen=True):
    """The number of SKUs that were filled up."""

    skus: int


async def play(console: Console) -> PlayView:
    """Return the state of the play desk. Raises Problem 404 without a local stack."""
    url = stack_of(console).url("PAYMENT_SIMULATOR_URL")
    faults, error = (None, None) if url is None else await console.work(_faults, url)
    return PlayView(console.part(Desk).view(), list(KINDS), url, faults, error, list(PRESETS))


def _faults(url: str) -> tuple[Members | None, str | None]:
    try:
        return faults_at(url), None
    except SimulatorError as error:
        return None, str(error)


async def start(console: Console, actor: str, body: StartPlay) -> PlayAction:
    """Start placing orders. Raises Problem."""
    stack_of(console)
    mix = {kind: share for kind, share in body.mix.items() if share}
    if not mix:
        raise Problem(400, "empty-mix", "The mix is empty", "At least one kind of order needs a share above 0.")
    try:
        plan = Plan(body.rate, body.seconds, mix)
        return PlayAction(await console.part(Desk).start(plan, actor, body.reason))
    except StockError as error:
        raise Problem(409, "stock-refused", "The stock was not changed", f"{error}") from error


async def stop(console: Console, actor: str) -> PlayAction:
    """Stop placing orders. Raises Problem."""
    stack_of(console)
    return PlayAction(await console.part(Desk).stop(actor))


def change(console: Console, actor: str, body: ChangeFaults) -> FaultsChanged:
    """Change the faults of the simulator, and record it. Raises Problem."""
    url = stack_of(console).url("PAYMENT_SIMULATOR_URL")
    if url is None:
        detail = "This stack runs no payment simulator. Start it with `make demo`, or with PAYMENT_PROVIDER=simulator."
        raise Problem(409, "no-simulator", "There is no payment simulator", detail)
    preset = next((preset for preset in PRESETS if preset.name == body.preset), None)
    if body.preset is not None and preset is None:
        known = ", ".join(preset.name for preset in PRESETS)
        raise Problem(400, "unknown-preset", "There is no such preset", f"The presets are {known}.")
    members = {**(preset.members if preset else {}), **body.faults}
    if not members:
        raise Problem(400, "no-faults", "Nothing to change", "Name a preset, or members of the faults.")
    action = Action("play.faults", body.preset or "faults", actor, body.reason, members)
    try:
        with console.stores.acting() as connection, recorded(connection, action) as outcome:
            faults = change_faults(url, members)
            outcome.result = {"changed": len(members)}
    except RefusedFaultsError as error:
        raise Problem(400, "invalid-faults", "The faults are not valid", f"{error}") from error
    except SimulatorError as error:
        raise Problem(503, "no-simulator", "Try again", f"{error}") from error
    return FaultsChanged(outcome.action_id, faults)


def restock(console: Console, actor: str, reason: str) -> Restocked:
    """Fill up the SKUs of the play desk. Each change is recorded. Raises Problem."""
    stack_of(console)
    try:
        with console.stores.acting() as connection:
            return Restocked(fill_up(connection, actor, reason or "restock", FULL_UNITS))
    except StockError as error:
        raise Problem(409, "stock-refused", "The stock was not changed", f"{error}") from error


def operations(console: Console) -> list[Operation]:
    """Return the operations of this area."""

    async def shown(_: Call) -> PlayView:
        return await play(console)

    async def started(call: Call) -> PlayAction:
        return await start(console, call.visitor.actor, call.body)

    async def stopped(call: Call) -> PlayAction:
        return await stop(console, call.visitor.actor)

    async def changed(call: Call) -> FaultsChanged:
        return await console.work(change, console, call.visitor.actor, call.body)

    async def restocked(call: Call) -> Restocked:
        return await console.work(restock, console, call.visitor.actor, call.body.reason)

    def acting(path: str, summary: str, answer: Any, handle: Any, body: type[Struct]) -> Operation:
        return Operation("POST", f"/api/play/{path}", summary, answer, handle, body=body, acts=True)

    return [
        Operation("GET", "/api/play", "Show the play desk of the local stack", PlayView, shown),
        acting("start", "Place orders at a rate", PlayAction, started, StartPlay),
        acting("stop", "Stop placing orders", PlayAction, stopped, NoBody),
        acting("faults", "Change the faults of the payment simulator", FaultsChanged, changed, ChangeFaults),
        acting("restock", "Fill up the SKUs of the play desk", Restocked, restocked, Restock),
    ]
