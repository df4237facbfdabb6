"""Reads the metrics of a process as Prometheus does."""

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


def figures(exposition: str) -> dict[tuple[str, Labels], float]:
    """Return the value of each sample of a metrics page, by its name and its sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }
