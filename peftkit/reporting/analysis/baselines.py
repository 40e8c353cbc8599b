"""Baselines: what answers without training score on the same rows, and what training went by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit.reporting.analysis.records import Run
from peftkit.reporting.analysis.summaries import averaged


def baselines_of(
    runs: Sequence[Run], metric: str, mixed: dict[str, Any]
) -> dict[str, float | None]:
    """The scores of answers without training, where all runs were scored on the same data; None
    where they are undefined, as the correlation of a constant is."""
    if {"data", "split", "task"} & set(mixed):
        return {}
    known: dict[str, list[tuple[int, float | None]]] = {}
    for run in runs:
        simple = {"majority class": run.record.baseline}  # older records name no other
        for name, scores in (run.record.baselines or simple).items():
            if metric in scores:
                known.setdefault(name, []).append((run.fold or 0, scores[metric].value))
    means = {name: averaged(values) for name, values in known.items()}
    return {name: sum(m.values()) / len(m) if m else None for name, m in means.items()}


def validated_by(run: Run) -> str:
    """The score on the validation split that a run's training went by."""
    return run.record.headline if run.task is None else run.task.validation_metric
