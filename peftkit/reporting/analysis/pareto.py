"""Pareto fronts of score and cost, as far as the runs can show them.

A strategy is dominated only if one that is significantly better in score (Holm's correction over
all pairs) is surely no more expensive, so a strategy is called dominated in error as rarely as two
strategies are called different in error. What only the means would dominate is inconclusive.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scipy.special import stdtrit

from peftkit.reporting.analysis.differences import Pair
from peftkit.reporting.analysis.summaries import StrategySummary

Point = tuple[float, float]
"""A cost, and a score of which less is better."""
AXES = ("trainable", "peak_bytes", "train_seconds")
"""The costs that have a front."""
OPTIMAL, INCONCLUSIVE, DOMINATED = "optimal", "inconclusive", "dominated"


def pareto_status(
    summaries: Sequence[StrategySummary],
    pairs: Iterable[Pair],
    hardware_differs: bool = False,
    lower: bool = False,
) -> dict[str, dict[str, str]]:
    """'optimal', 'inconclusive' or 'dominated' by strategy and cost, if the cost is known.

    Memory and time are not compared if the hardware differs. `lower`: a lower score is better.
    """
    better: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.differ:
            first_wins = (pair.value > 0) != lower
            winner, loser = (pair.first, pair.second) if first_wins else (pair.second, pair.first)
            better.setdefault(loser, set()).add(winner)
    scored = [each for each in summaries if each.mean is not None]
    found: dict[str, dict[str, str]] = {each.label: {} for each in scored}
    for axis in AXES[:1] if hardware_differs else AXES:
        points = {}
        for each in scored:
            cost = typical_cost(each, axis)
            if cost is not None and each.mean is not None:
                points[each.label] = (cost, each.mean if lower else -each.mean)
        known = [each for each in scored if each.label in points]
        for each in known:
            winners = [o for o in known if o.label in better.get(each.label, set())]
            found[each.label][axis] = status_on(each, winners, points, axis)
    return found


def status_on(
    summary: StrategySummary,
    winners: Sequence[StrategySummary],
    points: Mapping[str, Point],
    axis: str,
) -> str:
    """The status of one strategy for one cost; `winners` have significantly better scores."""
    if any(surely_no_more_expensive(winner, summary, axis) for winner in winners):
        return DOMINATED
    own = points[summary.label]
    return INCONCLUSIVE if any(dominates(other, own) for other in points.values()) else OPTIMAL


def typical_cost(summary: StrategySummary, axis: str) -> float | None:
    """A strategy's cost: exact for parameters, else the median over seeds."""
    if axis == "trainable":
        return summary.trainable
    found = summary.measures.get(axis)
    return found.median if found else None


def dominates(other: Point, own: Point) -> bool:
    """Whether `other` is no worse in cost and mean score, and better in one of them."""
    return other != own and other[0] <= own[0] and other[1] <= own[1]


def surely_no_more_expensive(other: StrategySummary, summary: StrategySummary, axis: str) -> bool:
    """Whether `other` costs no more: exactly for parameters, else by a one-sided paired t test of
    the log ratio of costs over common seeds at 5 %, which needs two seeds."""
    if axis == "trainable":
        return (other.trainable or 0) <= (summary.trainable or 0)
    one, two = other.measures[axis], summary.measures[axis]
    assert one is not None and two is not None
    seeds = set(one.by_seed) & set(two.by_seed)
    if len(seeds) < 2 or not all(one.by_seed[s] > 0 and two.by_seed[s] > 0 for s in seeds):
        return False
    ratios = [math.log(one.by_seed[seed] / two.by_seed[seed]) for seed in seeds]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    return bool(statistics.fmean(ratios) + stdtrit(len(ratios) - 1, 0.95) * error <= 0)
