"""The results of `make bench`: what is in its JSON file, and the arithmetic over the runs of a contestant."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a contestant measured, or why it failed.

    `values` has the figures by name. A figure that could not be measured is missing. `cpu_us` has for each phase the
    CPU of each process per order, in microseconds. `problems` says where the books do not agree.
    """

    contestant: str
    values: Mapping[str, float] = {}
    cpu_us: Mapping[str, Mapping[str, float]] = {}
    problems: Sequence[str] = ()
    failure: str | None = None


class RowFigure(msgspec.Struct, frozen=True):
    """A figure of a further row of OrderStream, as text."""

    name: str
    measured: str


class Row(msgspec.Struct, frozen=True):
    """A further row of OrderStream alone, with the command's name of it."""

    name: str
    about: str
    figures: Sequence[RowFigure]
    problems: Sequence[str] = ()


class Step(msgspec.Struct, frozen=True):
    """A step of the benchmark, and how long it took."""

    name: str
    seconds: float


class Machine(msgspec.Struct, frozen=True):
    """Where and with what the results were measured."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    versions: Mapping[str, str]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run of `make bench`.

    `names` has each contestant in words, and `abouts` a paragraph about it. `left_out` says why a contestant was not
    measured, although nothing failed. The seconds of all `steps` together are the time that the run took.
    """

    date: str
    quick: bool
    machine: Machine
    names: Mapping[str, str]
    abouts: Mapping[str, str]
    runs: Sequence[Figures]
    rows: Sequence[Row]
    left_out: Mapping[str, str] = {}
    steps: Sequence[Step] = ()

    @property
    def problems(self) -> list[str]:
        """Everything because of which the command fails."""
        found = [f"{run.contestant}: {problem}" for run in self.runs for problem in run.problems]
        found += [f"{run.contestant}: {run.failure}" for run in self.runs if run.failure]
        return found + [f"{row.name}: {problem}" for row in self.rows for problem in row.problems]


class Spread(msgspec.Struct, frozen=True):
    """The median of some runs, with the smallest and the largest value."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return the median and the range. None without values."""
    known = [value for value in values if not math.isnan(value)]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def of(result: Result, contestant: str, figure: str) -> Spread | None:
    """Return a figure of a contestant over its runs. None: it was not measured."""
    runs = [run for run in result.runs if run.contestant == contestant]
    return spread([run.values[figure] for run in runs if figure in run.values])


def cpu_of(result: Result, contestant: str, phase: str) -> dict[str, float]:
    """Return the median over the runs of the CPU per order of each process, in microseconds."""
    runs = [run.cpu_us[phase] for run in result.runs if run.contestant == contestant and phase in run.cpu_us]
    names = {name: None for cpu_us in runs for name in cpu_us}
    return {name: statistics.median(cpu_us.get(name, 0.0) for cpu_us in runs) for name in names}


def ratio(result: Result, ours: str, theirs: str, figure: str) -> float | None:
    """Return how many times larger the median of `ours` is than that of `theirs`."""
    first, second = of(result, ours, figure), of(result, theirs, figure)
    return first.median / second.median if first and second and second.median else None


def write(result: Result, path: Path) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))


def read(path: Path) -> Result:
    """Read a result. Raises msgspec.ValidationError."""
    return msgspec.json.decode(path.read_bytes(), type=Result)
