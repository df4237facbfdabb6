"""`make bench`: compares OrderStream with what people would use instead of it, and measures it at further loads.

It installs the contestants, lets each of them do the same work in turn, three times, and checks the books after every
run. Then it measures OrderStream alone. It writes the results as JSON and prints them as tables. If a contestant fails,
or if its books do not agree, the others go on, and the exit code is 1.
"""

import argparse
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from orderstream.local.processes.state import BusyError, checkout
from tests.load.bench import comparison, contestants, machine, order_rows, report, results
from tests.load.bench.comparison import FULL, QUICK, Plan
from tests.load.bench.laps import Laps
from tests.load.bench.peers.limit import limit
from tests.load.bench.results import Figures, Result, Row
from tests.load.system import kept_programs, say

FOLDER = checkout() / ".orderstream" / "bench"
LATE_SECONDS = 36 * 60.0
"""`make bench` shall end within 40 minutes. After this time it starts no stack for further rows, if ROWS names none.

A slow machine or network may need longer for the installation of the contestants.
"""


def main() -> int:
    """Run everything that was asked for, and return the exit code."""
    everyone = (contestants.OURS, *contestants.PEERS, contestants.LIMIT)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="names of contestants besides OrderStream, separated by commas. Default: all")
    parser.add_argument("--rows", help="names of rows of OrderStream alone, separated by commas. Default: all")
    parser.add_argument("--quick", action="store_true", help="one short run of each contestant, and few rows")
    given = parser.parse_args()
    peers = _names(parser, given.peers, everyone[1:], everyone[1:])
    rows = _names(parser, given.rows, order_rows.NAMES, order_rows.QUICK_ROWS if given.quick else None)
    left_out = _left_out(peers) if given.quick and given.peers is None else {}
    laps = Laps()
    failed = _install([peer for peer in peers if peer not in left_out], laps)
    names = [] if given.peers == "" and rows else [contestants.OURS]
    names += [peer for peer in peers if peer not in {*left_out, *(run.contestant for run in failed)}]
    with kept_programs(FOLDER / "programs"):
        runs = [*failed, *_compare(names, QUICK if given.quick else FULL, laps)]
        further = list(_rows(rows, laps, LATE_SECONDS if given.rows is None else math.inf, quick=given.quick))
    date = datetime.now(UTC)
    shown = {name: _in_words(name) for name in (contestants.OURS, *peers)}
    result = Result(
        date=date.strftime("%Y-%m-%d"),
        quick=given.quick,
        machine=machine.describe(),
        names={name: words for name, (words, _) in shown.items()},
        abouts={name: about for name, (_, about) in shown.items()},
        runs=runs,
        rows=further,
        left_out=left_out,
        steps=laps.steps,
    )
    path = FOLDER / "results" / f"{date:%Y-%m-%dT%H-%M-%S}.json"
    results.write(result, path)
    print(report.whole(result))
    say(f"\nThe results are in {path}")
    for problem in result.problems:
        say(problem)
    return 1 if result.problems else 0


def _names(
    parser: argparse.ArgumentParser, given: str | None, known: Sequence[str], default: Sequence[str] | None
) -> list[str]:
    """Return the names in an option. Without the option: the default, which is all of them if it is None."""
    if given is None:
        return list(known if default is None else default)
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}. Possible are {', '.join(known)}")
    return names


def _left_out(peers: Sequence[str]) -> dict[str, str]:
    """Return the contestants that a quick run leaves out, with the reason, and say so."""
    found = {name: contestants.LEFT_OUT for name in peers if contestants.needs_minutes_to_install(name)}
    for name, why in found.items():
        say(f"{name} is left out: {why}")
    return found


def _install(peers: Sequence[str], laps: Laps) -> list[Figures]:
    """Install the contestants. Return those that cannot be installed, as failed."""
    failed = []
    for name in peers:
        if name == contestants.LIMIT:
            continue
        say(f"Installing {name}")
        try:
            contestants.contestant(name).install()
        except Exception as error:  # noqa: BLE001 - a contestant may fail in any way, and the others go on
            failed.append(Figures(contestant=name, failure=f"not installed: {type(error).__name__}: {error}"[:500]))
        laps.end(f"install {name}")
    return failed


def _compare(names: Sequence[str], plan: Plan, laps: Laps) -> Iterator[Figures]:
    """Measure the contestants in turn, and again, so that a slow moment of the machine does not hit only one of them.

    A contestant that failed is not run again.
    """
    failed: set[str] = set()
    for number in range(1, plan.runs + 1):
        for name in names:
            if name in failed:
                continue
            say(f"Run {number} of {plan.runs}: {name}")
            measure: Callable[[str, Path, Plan], Figures] = _limit if name == contestants.LIMIT else comparison.run
            figures = measure(name, FOLDER / "stacks" / name, plan)
            if figures.failure:
                failed.add(name)
            laps.end(f"{name}, {plan.runs} runs" if plan.runs > 1 else f"{name}, one run")
            yield figures


def _limit(name: str, folder: Path, plan: Plan) -> Figures:
    """Measure how fast the same rows and messages can be written at all."""
    try:
        measured = limit.measure(folder, plan.warm_up_seconds_java, plan.saturated_seconds)
    except Exception as error:  # noqa: BLE001 - the contestants go on without the limit
        return Figures(contestant=name, failure=f"{type(error).__name__}: {error}"[:500])
    values = {
        "settled_per_second": measured.settled_per_second,
        "cpu_us_saturated": sum(measured.cpu_us_per_order.values()),
    }
    return Figures(contestant=name, values=values, cpu_us={"saturated": measured.cpu_us_per_order})


def _rows(names: Sequence[str], laps: Laps, late_seconds: float, *, quick: bool) -> Iterator[Row]:
    """Measure OrderStream alone. The first row of a stack includes its start, and the last one its end."""
    folder = FOLDER / "stacks" / contestants.OURS
    for row in order_rows.measure(names, folder, quick=quick, is_late=lambda: laps.seconds > late_seconds):
        laps.end(f"row {row.name}")
        yield row


def _in_words(name: str) -> tuple[str, str]:
    """Return the name of a contestant in words, and the paragraph about it."""
    if name == contestants.LIMIT:
        return "the limit", limit.about
    try:
        contestant = contestants.contestant(name)
    except Exception:  # noqa: BLE001 - a defect in it was reported already
        return name, ""
    return contestant.name, contestant.about


if __name__ == "__main__":
    # A signal ends the contestant that runs, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except BusyError:
        sys.exit(
            f"Another `make bench` uses {FOLDER}. Two on one machine would slow each other and give wrong results."
        )
