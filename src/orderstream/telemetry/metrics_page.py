"""Reads the metrics page of another process quickly: only the metrics that the caller names.

The parser of prometheus_client takes 20 times as long, and the console reads every page again every few seconds.
"""

from collections.abc import Collection

Figures = dict[str, list[tuple[str, float]]]
"""The samples of a metric by its name: the text of the labels, such as `outcome="hit"`, and the value."""


def figures_of(text: str, names: Collection[str]) -> Figures:
    """Return the samples of the named metrics. Raises ValueError if the text is no metrics page."""
    found: Figures = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name not in names:
            continue
        # The value is the last word: our pages have no timestamps, and a label may contain a space or a bracket.
        head, _, value = line.rpartition(" ")
        found.setdefault(name, []).append((head[len(name) :].strip("{}"), float(value)))
    return found


def total(figures: Figures, name: str, label: str = "") -> float:
    """Return the sum of the samples of a metric whose labels contain `label`, such as `outcome="hit"`."""
    return sum(value for labels, value in figures.get(name, ()) if label in labels)


def largest(figures: Figures, name: str) -> float:
    """Return the largest sample of a metric, 0 without samples."""
    return max((value for _, value in figures.get(name, ())), default=0.0)
