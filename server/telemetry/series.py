"""Removing the series of a student that is gone."""

from collections.abc import Sequence

from prometheus_client.metrics import MetricWrapperBase


def forget_series(family: MetricWrapperBase, labels: Sequence[str], student: str) -> None:
    """Remove a student's series. `labels` are the family's own, in order; the first is the student's name."""
    found = {
        tuple(sample.labels[label] for label in labels)
        for metric in family.collect()
        for sample in metric.samples
        if sample.labels[labels[0]] == student
    }
    for values in found:
        family.remove(*values)
