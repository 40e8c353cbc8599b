"""Pareto fronts: which strategies no other beats in score at no higher cost, as far as is known.

A point is behind only where a strategy that is significantly better in score (Holm's correction
over all pairs) is surely no dearer: so a point is wrongly put behind as rarely as two strategies
are wrongly told apart. What the means alone would put behind is open.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scipy.special import stdtrit

from peftkit.reporting.analysis.differences import Pair
from peftkit.reporting.analysis.summaries import Standing

Point = tuple[float, float]
"""A cost, and a score of which less is better."""
AXES = ("trainable", "peak_bytes", "train_seconds")
"""Costs that a front is drawn over."""


def fronts(
    standings: Sequence[Standing],
    pairs: Iterable[Pair],
    axes: Sequence[str] = AXES,
    lower: bool = False,
) -> dict[str, dict[str, str]]:
    """By strategy and cost: 'front', 'open' or 'behind'; a strategy without a cost has none.

    `lower` says that a lower score is the better one.
    """
    better: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.differ:
            winner, loser = (
                (pair.second, pair.first)
                if (pair.value > 0) == lower
                else (pair.first, pair.second)
            )
            better.setdefault(loser, set()).add(winner)
    scored = [each for each in standings if each.mean is not None]
    found: dict[str, dict[str, str]] = {each.label: {} for each in scored}
    for axis in axes:
        points = {}
        for each in scored:
            cost = typical(each, axis)
            if cost is not None and each.mean is not None:
                points[each.label] = (cost, each.mean if lower else -each.mean)
        known = [each for each in scored if each.label in points]
        for each in known:
            winners = [o for o in known if o.label in better.get(each.label, set())]
            found[each.label][axis] = mark(each, winners, points, axis)
    return found


def mark(
    standing: Standing, winners: Sequence[Standing], points: Mapping[str, Point], axis: str
) -> str:
    """Where one strategy stands among all for one cost, of which `winners` score better."""
    if any(no_dearer(winner, standing, axis) for winner in winners):
        return "behind"
    own = points[standing.label]
    return "open" if any(dominates(other, own) for other in points.values()) else "front"


def typical(standing: Standing, axis: str) -> float | None:
    """A strategy's cost: exact for parameters, else the median over seeds."""
    if axis == "trainable":
        return standing.trainable
    found = standing.measures.get(axis)
    return found.median if found else None


def dominates(other: Point, own: Point) -> bool:
    """Whether the means put `other` in front: no worse in score nor cost, and better in one."""
    return other != own and other[0] <= own[0] and other[1] <= own[1]


def no_dearer(other: Standing, standing: Standing, axis: str) -> bool:
    """Whether `other` surely costs no more: exactly for parameters, else by a one-sided paired t
    test of the costs' ratio over common seeds at 5 %, which one seed cannot pass."""
    if axis == "trainable":
        return (other.trainable or 0) <= (standing.trainable or 0)
    one, two = other.measures[axis], standing.measures[axis]
    assert one is not None and two is not None
    seeds = set(one.by_seed) & set(two.by_seed)
    if len(seeds) < 2 or not all(one.by_seed[s] > 0 and two.by_seed[s] > 0 for s in seeds):
        return False
    ratios = [math.log(one.by_seed[seed] / two.by_seed[seed]) for seed in seeds]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    return bool(statistics.fmean(ratios) + stdtrit(len(ratios) - 1, 0.95) * error <= 0)
