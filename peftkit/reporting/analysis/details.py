"""The data of a report's charts, from records and logs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from peftkit.records.record import Tuning
from peftkit.registry import Settings
from peftkit.reporting.analysis.records import Run
from peftkit.reporting.analysis.summaries import StrategyRuns

MOST_CURVES = 24
"""Strategies whose logs are read; a chart of more would be unreadable."""
MOST_STEPS = 200
"""Points of a learning curve; of more, every second, third, ... is kept."""


class CurvePoint(Settings):
    """A strategy's validation score at one optimizer step."""

    step: int
    mean: float
    low: float
    """The lowest and the highest of the seeds."""
    high: float
    seeds: int
    """Seeds that were scored at this step."""


class Curve(Settings):
    """A strategy's validation score during training."""

    label: str
    points: list[CurvePoint]


class Search(Settings):
    """The learning rates that were tried for a strategy."""

    label: str
    tuning: Tuning


class Confusion(Settings):
    """A strategy's confusion matrix, summed over its seeds."""

    label: str
    names: list[str]
    counts: list[list[int]]
    """A row for each true class, a column for each predicted one."""
    seeds: int


def curves_of(strategies: Sequence[StrategyRuns]) -> list[Curve]:
    """The learning curves of strategies with logs, the best first."""
    best = strategies[:MOST_CURVES]
    found = [Curve(label=each.label, points=thinned(points_of(each))) for each in best]
    return [curve for curve in found if curve.points]


def points_of(strategy: StrategyRuns) -> list[CurvePoint]:
    """The validation scores of a strategy's seeds, step by step."""
    by_step: dict[int, list[float]] = {}
    for run in strategy.finished:
        # a step that occurs twice was evaluated again after a resume: the last one counts
        for step, score in dict(scores_in(run)).items():
            by_step.setdefault(step, []).append(score)
    return [
        CurvePoint(
            step=step,
            mean=statistics.fmean(scores),
            low=min(scores),
            high=max(scores),
            seeds=len(scores),
        )
        for step, scores in sorted(by_step.items())
    ]


def scores_in(run: Run) -> list[tuple[int, float]]:
    """The finite validation scores in a run's log, with their steps."""
    return [
        (int(line["step"]), float(line["eval_score"]))
        for line in run.evaluations
        if isinstance(line.get("step"), int)
        and isinstance(line.get("eval_score"), (int, float))
        and math.isfinite(line["eval_score"])
    ]


def thinned(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """At most `MOST_STEPS` points, always with the last."""
    stride = math.ceil(len(points) / MOST_STEPS) or 1
    return list(points[::-1][::stride][::-1])


def searches_of(strategies: Sequence[StrategyRuns]) -> list[Search]:
    """The rate search of each strategy that has one; its seeds share it."""
    found = []
    for strategy in strategies:
        tuning = next((run.record.tuning for run in strategy.runs if run.record.tuning), None)
        if tuning is not None:
            found.append(Search(label=strategy.label, tuning=tuning))
    return found


def confusions_of(strategies: Sequence[StrategyRuns]) -> list[Confusion]:
    """The confusion matrix of each strategy whose records have one."""
    found = []
    for strategy in strategies:
        named = [(run.names, matrix) for run in strategy.finished if (matrix := confusion_of(run))]
        if not named:
            continue
        names, first = named[0]
        matrices = [matrix for own, matrix in named if own == names]
        classes = range(len(first))
        counts = [[sum(matrix[i][j] for matrix in matrices) for j in classes] for i in classes]
        found.append(
            Confusion(label=strategy.label, names=names, counts=counts, seeds=len(matrices))
        )
    return found


def confusion_of(run: Run) -> list[list[int]] | None:
    """The counts that a record holds, where they are a square of its classes."""
    confusion, size = run.record.details.get("confusion"), len(run.names)
    rows = confusion if isinstance(confusion, list) and len(confusion) == size > 0 else []
    whole = bool(rows) and all(
        isinstance(row, list)
        and len(row) == size
        and all(isinstance(count, int) and count >= 0 for count in row)
        for row in rows
    )
    return rows if whole else None
