"""The page `/play`."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.actions.pages import recorded_action
from orderstream.console.context import Console
from orderstream.console.play.api import ChangeFaults, StartPlay, change, play, restock, start, stop
from orderstream.console.play.orders import KINDS
from orderstream.console.play.scenarios import SCENARIOS
from orderstream.console.processes.api import processes
from orderstream.console.web.forms import struct_of
from orderstream.console.web.pages import form_of, page_routes, seen_other
from orderstream.http_server.problems import Problem

_NUMBERS = (
    "latencyMs", "latencyP99Ms", "declineRate", "refuseRate", "errorBeforeRate", "errorAfterRate", "dropAfterRate",
    "hangRate", "pendingRate", "pendingSeconds",
)  # fmt: skip


def routes(console: Console) -> list[Route]:
    """Return the routes of this area."""

    async def show(request: Request, problem: Problem | None = None) -> Response:
        found = await play(console)
        listed = (await console.work(processes, console)).processes
        done = await recorded_action(console, request.query_params.get("done"))
        status = 200 if problem is None else problem.status
        names = [process.name for process in listed if process.can_be_signalled]
        values = {"found": found, "done": done, "problem": problem, "names": names, "scenarios": SCENARIOS}
        return console.templates.page(request, "play/desk.html", status, **values)

    async def act(request: Request) -> Response:
        actor, form, what = request.state.visitor.actor, await form_of(request), request.path_params["what"]
        try:
            if what == "start":
                action_id = (await start(console, actor, _plan(form))).action_id
            elif what == "stop":
                action_id = (await stop(console, actor)).action_id
            elif what == "faults":
                action_id = (await console.work(change, console, actor, _faults(form))).action_id
            elif what == "restock":
                await console.work(restock, console, actor, form.get("reason", ""))
                return seen_other("/stock?q=PLAY-")
            else:
                raise Problem(404, "not-found", "Not found", "There is no such page.")
        except Problem as problem:
            return await show(request, problem)
        return seen_other(f"/play?done={action_id}")

    return page_routes([("GET", "/play", show), ("POST", "/play/{what}", act)])


def _plan(form: Mapping[str, str]) -> StartPlay:
    """Return what the form of the desk asks for. Raises Problem 400."""
    mix = "\n".join(f"{kind.name}={form.get(f'mix-{kind.name}', '')}" for kind in KINDS)
    fields = {**form, "seconds": form.get("minutes", ""), "mix": mix}
    return struct_of(fields, StartPlay, {"rate": float, "seconds": _minutes, "mix": _shares, "reason": str})


def _minutes(text: str) -> float:
    return 60 * float(text)


def _shares(text: str) -> dict[str, int]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {kind: int(share or 0) for kind, _, share in pairs}


def _faults(form: Mapping[str, str]) -> ChangeFaults:
    """Return a preset, or the members of the form. Raises Problem 400."""
    if "preset" in form:
        return ChangeFaults(form["preset"], {}, form.get("reason", "") or f"preset {form['preset']}")
    members = "\n".join(f"{name}={form[name]}" for name in _NUMBERS if form.get(name))
    faults = struct_of(
        {"faults": members, "reason": form.get("reason", "")}, ChangeFaults, {"faults": _members, "reason": str}
    )
    extra = {
        "latencyDistribution": "lognormal" if faults.faults.get("latencyP99Ms") else "fixed",
        "down": "down" in form,
    }
    return ChangeFaults(None, {**faults.faults, **extra}, faults.reason)


def _members(text: str) -> dict[str, float]:
    return {name: float(value) for name, _, value in (line.partition("=") for line in text.splitlines())}
