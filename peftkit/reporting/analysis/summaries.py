"""Standings: each strategy of a report with its seeds, scores and costs; empty is unknown."""

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
from peftkit.reporting.analysis.compatibility import one_a_seed, plain_recipe, strategy_key, turn_of
from peftkit.reporting.analysis.records import Run, by_key, value_at
from peftkit.strategies.base import Strategy

MOST_LABEL = 80
"""Letters of a strategy's label."""


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
    def turn(self) -> str:
        """Its seed, and its fold where there are any, in words."""
        return turn_of(self.fold, self.seed)


class Difference(Settings):
    """A strategy's score less another's, on the same rows and seeds."""

    value: float
    low: float
    """Ends of the 95 % interval."""
    high: float
    joint_low: float
    """Ends of intervals that all hold together in 95 % of cases (Bonferroni's)."""
    joint_high: float
    p: float
    p_corrected: float
    """Holm's, over all pairs of the report."""
    detectable: float
    """The smallest true difference that would have been found in 80 % of cases, corrected for the
    number of comparisons."""
    seeds: list[int]
    """Those that both have; folds, in a cross-validation."""
    rows: int


class Standing(Settings):
    """One strategy: a row of the report."""

    label: str
    strategy: str
    """Its kind."""
    quantization: str
    settings: dict[str, str]
    """What tells it from other rows of its kind, as JSON by dotted path."""
    runs: list[str]
    """Folders of the runs that are counted."""
    seeds: list[int]
    """Those that have a score; folds, in a cross-validation."""
    failures: list[Failure]
    status: str
    """'finished', or what became of a strategy without any score."""
    trainable: int | None
    total: int | None
    steps: int | None
    measures: dict[str, Measure | None]
    """Costs by name; null where no record holds one."""
    reached: str | None = None
    """How many seeds reached the reference's validation score; null where no log tells."""
    scores: dict[int, float]
    """By seed, on the rows that are compared; by fold, the mean over its seeds, in a
    cross-validation."""
    mean: float | None
    deviation: float | None
    """Standard deviation over seeds; null for fewer than two."""
    low: float | None = None
    """Ends of the mean's 95 % interval, over seeds and rows."""
    high: float | None = None
    difference: Difference | None = None
    """To the reference; null for itself, and where there is nothing to compare by."""
    groups: str = ""
    """Strategies that share a letter cannot be told apart."""
    front: dict[str, str] = Field(default_factory=dict)
    """By cost: 'front', 'open' or 'behind'."""
    mixed: list[str] = Field(default_factory=list)
    """In what its runs differ from the reference's, where that was allowed."""

    @property
    def share(self) -> float | None:
        """Trainable weights as a share of all."""
        if self.trainable is None or not self.total:
            return None
        return self.trainable / self.total


class Member:
    """A strategy's runs before they are summed up."""

    def __init__(self, key: str, runs: Sequence[Run]) -> None:
        self.recipe = plain_recipe(key)
        self.runs, self.notes = one_a_seed(runs)
        self.finished = [run for run in self.runs if run.finished]
        self.label = base_label(self.recipe)
        self.differs: dict[str, str] = {}
        """The settings, as JSON, that tell it from others of the same kind."""

    @property
    def records(self) -> list[RunRecord]:
        """Records of the finished runs."""
        return [run.record for run in self.finished]


def members_of(runs: Iterable[Run]) -> list[Member]:
    """The strategies among runs, each under a label of its own."""
    members = [Member(key, found) for key, found in by_key(runs, strategy_key)]
    for label in {member.label for member in members}:
        tell_apart([member for member in members if member.label == label])
    return members


def base_label(recipe: dict[str, Any]) -> str:
    """What the strategy is called, and how the base is held."""
    called = nicknamed().get(json.dumps(recipe["strategy"], sort_keys=True))
    kind, held = str(value_at(recipe, "strategy.kind")), str(value_at(recipe, "quantize.kind"))
    name = called or kind
    return (name if held == "none" else f"{name} on {held}")[:MOST_LABEL]


@cache
def nicknamed() -> dict[str, str]:
    """The aliases of strategies by the settings that they stand for, defaults included."""
    return {
        json.dumps(Strategy.parse(alias, "strategy").to_dict(), sort_keys=True): alias
        for alias in Strategy.all_aliases()
    }


def tell_apart(members: Sequence[Member]) -> None:
    """Add to labels that are the same what the strategies differ in, and then their number."""
    if len(members) == 1:
        return
    settings = [{path: json.dumps(v) for path, v in flat(m.recipe)} for m in members]
    paths = dict.fromkeys(path for own in settings for path in own)
    odd = [path for path in paths if len({own.get(path) for own in settings}) > 1]
    taken: set[str] = set()
    for number, (member, own) in enumerate(zip(members, settings, strict=True), 1):
        member.differs = {path: own[path] for path in odd if path in own}
        words = [f"{path.rpartition('.')[2]}={value}" for path, value in member.differs.items()]
        label = " ".join([member.label, *words])[:MOST_LABEL]
        member.label = f"{label} #{number}" if label in taken else label
        taken.add(label)


COSTS = (
    "artifact_bytes",
    "peak_bytes",
    "peak_evaluate_bytes",
    "tokens_per_second",
    "train_seconds",
    "total_seconds",
)
"""What of a record's cost a report has: bytes, tokens a second, seconds."""


def averaged(values: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    """Values by seed, or by fold: the mean where one fold was run under several seeds. What is
    unknown or no number is left out."""
    known: dict[int, list[float]] = {}
    for turn, value in values:
        if value is not None and math.isfinite(value):
            known.setdefault(turn, []).append(float(value))
    return {turn: statistics.fmean(found) for turn, found in known.items()}


def measure(values: Iterable[tuple[int, float | None]]) -> Measure | None:
    """A cost over seeds; None where no seed has it."""
    known = averaged(values)
    if not known:
        return None
    median = statistics.median(known.values())
    low, high = min(known.values()), max(known.values())
    return Measure(median=median, low=low, high=high, by_seed=known)


def standing_of(member: Member, scores: dict[int, float]) -> Standing:
    """A strategy's row, without what other rows are needed for."""
    first = member.runs[0].record
    counted = next((r.record.parameters for r in member.runs if r.record.parameters), None)
    values = list(scores.values())
    return Standing(
        label=member.label,
        strategy=str(value_at(first.recipe, "strategy.kind")),
        quantization=str(value_at(first.recipe, "quantize.kind")),
        settings=member.differs,
        runs=[run.where for run in member.runs],
        seeds=sorted(scores),
        failures=[failure_of(run) for run in member.runs if not run.finished],
        status=status_of(member),
        trainable=counted.trainable if counted else None,
        total=counted.total if counted else None,
        steps=max((record.steps for record in member.records), default=None),
        measures={
            name: measure(
                (run.turn, getattr(run.record.cost, name, None)) for run in member.finished
            )
            for name in COSTS
        },
        scores=scores,
        mean=statistics.fmean(values) if values else None,
        deviation=statistics.stdev(values) if len(values) > 1 else None,
    )


def failure_of(run: Run) -> Failure:
    """What became of a run without a score."""
    reason = run.record.reason or "no reason was recorded"
    kind = kind_of_failure(reason)
    return Failure(run=run.where, seed=run.seed, fold=run.fold, status=kind, reason=reason)


def kind_of_failure(reason: str) -> str:
    """Failures by what they say to someone who chooses a strategy."""
    if "out of memory" in reason.lower():
        return "out of memory"
    return "diverged" if "is not a number" in reason or "diverged" in reason else "failed"


def status_of(member: Member) -> str:
    """'finished' where some seed has a score, else what most of its runs came to."""
    if member.finished:
        return "finished"
    return statistics.mode(failure_of(run).status for run in member.runs)


def seconds_to(
    member: Member, target: float | None, metric: str = "accuracy"
) -> tuple[Measure | None, str | None]:
    """Training seconds to the first evaluation whose `metric` reached `target`, and how many seeds
    did.

    A log has steps and no times: the seconds are the step's share of all the run's.
    """
    logs = [(run.turn, run.record, run.evaluations) for run in member.finished]
    logs = [(turn, record, log) for turn, record, log in logs if log and record.cost]
    if target is None or not logs:
        return None, None
    found = []
    for turn, record, log in logs:
        reached = [
            entry["step"]
            for entry in log
            if isinstance(entry.get("eval_score"), float)
            and math.isfinite(entry["eval_score"])
            and gain(metric, target) <= gain(metric, entry["eval_score"])
        ]
        assert record.cost is not None
        if reached and record.steps:
            found.append((turn, record.cost.train_seconds * min(reached) / record.steps))
    return measure(found), f"{len(found)} of {len(logs)}"
