"""The figures of a process, as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


def figures(exposition: str) -> dict[tuple[str, Labels], float]:
    """Return the value of each sample of an exposition by its name and its labels, which are sorted."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }
