"""The scores of answers without training on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit.reporting.analysis.records import Run
from peftkit.reporting.analysis.summaries import average_by_replicate


def baselines_of(
    runs: Sequence[Run], metric: str, mixed: dict[str, Any]
) -> dict[str, float | None]:
    """The scores of answers without training by name, if all runs have the same data; None if
    undefined, as the correlation of a constant is."""
    if {"data", "split", "task"} & set(mixed):
        return {}
    known: dict[str, list[tuple[int, float | None]]] = {}
    for run in runs:
        simple = {"majority class": run.record.baseline}  # older records have no other
        for name, scores in (run.record.baselines or simple).items():
            if metric in scores:
                known.setdefault(name, []).append((run.fold or 0, scores[metric].value))
    means = {name: average_by_replicate(values) for name, values in known.items()}
    return {name: sum(m.values()) / len(m) if m else None for name, m in means.items()}


def validated_by(run: Run) -> str:
    """The metric of a run's validation scores."""
    return run.record.headline if run.task is None else run.task.validation_metric
