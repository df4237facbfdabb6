"""`make bench`: compares OrderStream with what people would use instead of it, and measures it at further loads.

It installs the contestants, lets each of them do the same work in turn, three times, and checks the books after every
run. Then it measures OrderStream alone. It writes the results as JSON and prints them as tables. If a contestant fails,
or if its books do not agree, the others go on, and the exit code is 1.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from orderstream.local.processes.state import checkout
from tests.load.bench import comparison, contestants, machine, order_rows, report, results
from tests.load.bench.comparison import FULL, QUICK, Plan
from tests.load.bench.peers.limit import limit
from tests.load.bench.results import Figures, Result, Row
from tests.load.system import say

FOLDER = checkout() / ".orderstream" / "bench"
LIMIT_SECONDS, LIMIT_SECONDS_QUICK = 15.0, 5.0


def main() -> int:
    """Run everything that was asked for, and return the exit code."""
    everyone = (contestants.OURS, *contestants.PEERS, contestants.LIMIT)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="names of contestants besides OrderStream, separated by commas. Default: all")
    parser.add_argument("--rows", help="names of rows of OrderStream alone, separated by commas. Default: all")
    parser.add_argument("--quick", action="store_true", help="one short run of each contestant, and few rows")
    given = parser.parse_args()
    peers = _names(parser, given.peers, everyone[1:], everyone[1:])
    rows = _names(parser, given.rows, tuple(order_rows.ROWS), order_rows.QUICK_ROWS if given.quick else None)
    failed = _install(peers)
    names = [] if given.peers == "" and rows else [contestants.OURS]
    names += [peer for peer in peers if peer not in {run.contestant for run in failed}]
    runs = [*failed, *_compare(names, QUICK if given.quick else FULL, quick=given.quick)]
    further = list(_rows(rows, quick=given.quick))
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


def _install(peers: Sequence[str]) -> list[Figures]:
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
    return failed


def _compare(names: Sequence[str], plan: Plan, *, quick: bool) -> Iterator[Figures]:
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
            yield figures


def _limit(name: str, folder: Path, plan: Plan) -> Figures:
    """Measure how fast the same rows and messages can be written at all."""
    try:
        measured = limit.measure(folder, plan.saturated_seconds)
    except Exception as error:  # noqa: BLE001 - the contestants go on without the limit
        return Figures(contestant=name, failure=f"{type(error).__name__}: {error}"[:500])
    values = {
        "settled_per_second": measured.settled_per_second,
        "cpu_us_saturated": sum(measured.cpu_us_per_order.values()),
    }
    return Figures(contestant=name, values=values, cpu_us={"saturated": measured.cpu_us_per_order})


def _rows(names: Sequence[str], *, quick: bool) -> Iterator[Row]:
    yield from order_rows.measure(names, FOLDER / "stacks" / contestants.OURS, quick=quick)


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
    sys.exit(main())
