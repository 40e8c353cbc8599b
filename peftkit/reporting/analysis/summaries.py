"""Summaries of strategies: seeds, scores and costs; None is unknown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from pydantic import Field

from peftkit.config.composition import flat
from peftkit.metrics.registry import gain
from peftkit.records.record import RunRecord
from peftkit.registry import Settings
from peftkit.reporting.analysis.compatibility import (
    describe_replicate,
    one_a_seed,
    plain_recipe,
    strategy_key,
)
from peftkit.reporting.analysis.records import Run, by_key, value_at
from peftkit.strategies.base import Strategy

MOST_LABEL = 80
"""Characters of a strategy's label."""


class Measure(Settings):
    """A cost over a strategy's seeds."""

    median: float
    low: float
    high: float
    by_seed: dict[int, float]


class Failure(Settings):
    """A run without a score."""

    run: str
    seed: int
    fold: int | None = None
    status: str
    """'out of memory', 'diverged' or 'failed'."""
    reason: str

    @property
    def replicate(self) -> str:
        """Its seed and its fold, in words."""
        return describe_replicate(self.fold, self.seed)


class Difference(Settings):
    """A strategy's score less that of another, on the same rows and seeds."""

    value: float
    low: float
    """Ends of the 95 % interval."""
    high: float
    joint_low: float
    """Ends of the simultaneous interval: all of them hold at once in 95 % of cases (Bonferroni)."""
    joint_high: float
    p: float
    p_corrected: float
    """Corrected by Holm over all pairs of the report."""
    minimum_detectable: float
    """The smallest true difference that is detected with 80 % power, corrected for the number of
    comparisons."""
    seeds: list[int]
    """Seeds that both have; folds in a cross-validation."""
    rows: int


class StrategySummary(Settings):
    """One strategy of a report."""

    label: str
    strategy: str
    """The kind."""
    quantization: str
    settings: dict[str, str]
    """Settings that tell it from others of its kind, as JSON by dotted path."""
    runs: list[str]
    """Names of the runs that are used."""
    seeds: list[int]
    """Seeds with a score; folds in a cross-validation."""
    failures: list[Failure]
    status: str
    """'finished', or the most frequent failure of a strategy without a score."""
    trainable: int | None
    total: int | None
    steps: int | None
    measures: dict[str, Measure | None]
    """Costs by name; null if no record has it."""
    reached: str | None = None
    """How many seeds reached the reference's validation score; null without logs."""
    scores: dict[int, float]
    """By seed, on the rows that are compared; in a cross-validation by fold, means over seeds."""
    mean: float | None
    deviation: float | None
    """Standard deviation over seeds; null for one seed."""
    low: float | None = None
    """Ends of the mean's 95 % interval over seeds and rows."""
    high: float | None = None
    difference: Difference | None = None
    """To the reference; null for the reference itself, and without common seeds and rows."""
    groups: str = ""
    """Letters; strategies that share one do not differ significantly."""
    pareto: dict[str, str] = Field(default_factory=dict)
    """By cost: 'optimal', 'inconclusive' or 'dominated'."""
    mixed: list[str] = Field(default_factory=list)
    """Facts in which its runs differ from the reference's, if that was allowed."""

    @property
    def share(self) -> float | None:
        """Trainable weights as a share of all weights."""
        if self.trainable is None or not self.total:
            return None
        return self.trainable / self.total


class StrategyRuns:
    """The runs of one strategy."""

    def __init__(self, key: str, runs: Sequence[Run]) -> None:
        self.recipe = plain_recipe(key)
        self.runs, self.notes = one_a_seed(runs)
        self.finished = [run for run in self.runs if run.finished]
        self.label = base_label(self.recipe)
        self.differs: dict[str, str] = {}
        """Settings that tell it from others of the same kind, as JSON."""

    @property
    def records(self) -> list[RunRecord]:
        """The records of the finished runs."""
        return [run.record for run in self.finished]


def group_by_strategy(runs: Iterable[Run]) -> list[StrategyRuns]:
    """The runs of each strategy, under unique labels."""
    strategies = [StrategyRuns(key, found) for key, found in by_key(runs, strategy_key)]
    for label in {strategy.label for strategy in strategies}:
        tell_apart([strategy for strategy in strategies if strategy.label == label])
    return strategies


def base_label(recipe: dict[str, Any]) -> str:
    """The alias or kind of the strategy, and the quantization of the base."""
    called = alias_by_settings().get(json.dumps(recipe["strategy"], sort_keys=True))
    kind, held = str(value_at(recipe, "strategy.kind")), str(value_at(recipe, "quantize.kind"))
    name = called or kind
    return (name if held == "none" else f"{name} on {held}")[:MOST_LABEL]


@cache
def alias_by_settings() -> dict[str, str]:
    """The aliases of strategies, by their settings as JSON."""
    return {
        json.dumps(Strategy.parse(alias, "strategy").to_dict(), sort_keys=True): alias
        for alias in Strategy.all_aliases()
    }


def tell_apart(strategies: Sequence[StrategyRuns]) -> None:
    """Add the settings that differ to equal labels, and a number if they are still equal."""
    if len(strategies) == 1:
        return
    settings = [{path: json.dumps(v) for path, v in flat(m.recipe)} for m in strategies]
    paths = dict.fromkeys(path for own in settings for path in own)
    odd = [path for path in paths if len({own.get(path) for own in settings}) > 1]
    taken: set[str] = set()
    for number, (strategy, own) in enumerate(zip(strategies, settings, strict=True), 1):
        strategy.differs = {path: own[path] for path in odd if path in own}
        words = [f"{path.rpartition('.')[2]}={value}" for path, value in strategy.differs.items()]
        label = " ".join([strategy.label, *words])[:MOST_LABEL]
        strategy.label = f"{label} #{number}" if label in taken else label
        taken.add(label)


COSTS = (
    "artifact_bytes",
    "peak_bytes",
    "peak_evaluate_bytes",
    "tokens_per_second",
    "train_seconds",
    "total_seconds",
)
"""The costs in a report: bytes, tokens per second, seconds."""


def average_by_replicate(values: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    """Values by seed or fold, averaged over the seeds of a fold; unknown and not finite ones are
    left out."""
    known: dict[int, list[float]] = {}
    for replicate, value in values:
        if value is not None and math.isfinite(value):
            known.setdefault(replicate, []).append(float(value))
    return {replicate: statistics.fmean(found) for replicate, found in known.items()}


def measure(values: Iterable[tuple[int, float | None]]) -> Measure | None:
    """The distribution of a cost over seeds; None if no seed has it."""
    known = average_by_replicate(values)
    if not known:
        return None
    median = statistics.median(known.values())
    low, high = min(known.values()), max(known.values())
    return Measure(median=median, low=low, high=high, by_seed=known)


def summarize(strategy: StrategyRuns, scores: dict[int, float]) -> StrategySummary:
    """The summary of a strategy, without what depends on others."""
    first = strategy.runs[0].record
    counted = next((r.record.parameters for r in strategy.runs if r.record.parameters), None)
    values = list(scores.values())
    return StrategySummary(
        label=strategy.label,
        strategy=str(value_at(first.recipe, "strategy.kind")),
        quantization=str(value_at(first.recipe, "quantize.kind")),
        settings=strategy.differs,
        runs=[run.where for run in strategy.runs],
        seeds=sorted(scores),
        failures=[failure_of(run) for run in strategy.runs if not run.finished],
        status=status_of(strategy),
        trainable=counted.trainable if counted else None,
        total=counted.total if counted else None,
        steps=max((record.steps for record in strategy.records), default=None),
        measures={
            name: measure(
                (run.replicate, getattr(run.record.cost, name, None)) for run in strategy.finished
            )
            for name in COSTS
        },
        scores=scores,
        mean=statistics.fmean(values) if values else None,
        deviation=statistics.stdev(values) if len(values) > 1 else None,
    )


def failure_of(run: Run) -> Failure:
    """Why a run has no score."""
    reason = run.record.reason or "no reason was recorded"
    kind = kind_of_failure(reason)
    return Failure(run=run.where, seed=run.seed, fold=run.fold, status=kind, reason=reason)


def kind_of_failure(reason: str) -> str:
    """The kind of a failure, from its message."""
    if "out of memory" in reason.lower():
        return "out of memory"
    return "diverged" if "is not a number" in reason or "diverged" in reason else "failed"


def status_of(strategy: StrategyRuns) -> str:
    """'finished' if some seed has a score, else the most frequent failure."""
    if strategy.finished:
        return "finished"
    return statistics.mode(failure_of(run).status for run in strategy.runs)


def seconds_to(
    strategy: StrategyRuns, target: float | None, metric: str = "accuracy"
) -> tuple[Measure | None, str | None]:
    """Training seconds to the first evaluation with `metric` at `target`, and how many seeds got
    there.

    Logs have steps and no times: the seconds are proportional to the steps.
    """
    logs = [(run.replicate, run.record, run.evaluations) for run in strategy.finished]
    logs = [(replicate, record, log) for replicate, record, log in logs if log and record.cost]
    if target is None or not logs:
        return None, None
    found = []
    for replicate, record, log in logs:
        reached = [
            entry["step"]
            for entry in log
            if isinstance(entry.get("eval_score"), float)
            and math.isfinite(entry["eval_score"])
            and gain(metric, target) <= gain(metric, entry["eval_score"])
        ]
        assert record.cost is not None
        if reached and record.steps:
            found.append((replicate, record.cost.train_seconds * min(reached) / record.steps))
    return measure(found), f"{len(found)} of {len(logs)}"
