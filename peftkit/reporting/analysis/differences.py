"""The differences among strategies, corrected for the number of comparisons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from peftkit.registry import Settings
from peftkit.reporting.analysis.cross_validation import CrossValidation
from peftkit.reporting.analysis.multiple_testing import groups, holm, letters
from peftkit.reporting.analysis.paired_tests import SeedsAndRows, Spread
from peftkit.reporting.analysis.summaries import Difference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.05
"""Familywise error rate of a report: how often it calls some two equal strategies different."""
PLANNED = 0.5
"""The share of it for the comparisons with the reference; the rest is for all other pairs."""
INTERVAL, SIMULTANEOUS = "95 % CI", "simultaneous 95 % CI"
"""How the two kinds of intervals are called: of one comparison, and of all together."""
Scores = Mapping[int, "Floats | float"]
"""A strategy's scores by seed, all rows' each; or by fold, one each."""
Noise = SeedsAndRows | CrossValidation


class Pair(Settings):
    """Two strategies and their difference."""

    first: str
    second: str
    value: float
    """The first's score less the second's."""
    p: float
    p_corrected: float
    """Holm's, over all pairs of the report."""

    @property
    def differ(self) -> bool:
        """Whether the two differ significantly."""
        return self.p_corrected < LEVEL


@dataclass
class Differences:
    """The differences among strategies, from their paired scores."""

    to_reference: dict[str, Difference] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    """Letters of each strategy; empty if there are too many groups."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each strategy's own mean."""


def differences(scores: Mapping[str, Scores], reference: str, noise: Noise) -> Differences:
    """The differences among strategies; `scores` holds those that have any, the best first."""
    labels = list(scores)
    places = [(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))]
    pairs = all_pairs(scores, places, reference, noise)
    planned = {}
    if reference in scores:
        base = labels.index(reference)
        planned = against(
            scores, [(i, base) for i in range(len(labels)) if i != base], noise, pairs
        )
    return Differences(planned, pairs, group_letters(labels, pairs), intervals(scores, noise))


def intervals(scores: Mapping[str, Scores], noise: Noise) -> dict[str, tuple[float, float]]:
    """Each strategy's mean, with its 95 % interval over seeds and rows, or over folds."""
    by_count: dict[int, list[str]] = {}
    for label, by_seed in scores.items():
        if len(by_seed) >= noise.fewest:
            by_count.setdefault(len(by_seed), []).append(label)
    found: dict[str, tuple[float, float]] = {}
    for labels in by_count.values():
        own = noise.of(np.stack([np.stack(list(scores[k].values())) for k in labels]))
        half = own.half_widths(LEVEL)
        ends = zip((own.mean - half).tolist(), (own.mean + half).tolist(), strict=True)
        found.update(zip(labels, ends, strict=True))
    return found


def batches(
    scores: Mapping[str, Scores], places: Iterable[tuple[int, int]], noise: Noise
) -> Iterator[tuple[list[int], list[tuple[int, int]], Spread]]:
    """The spread of pairs' differences, all pairs that share the same seeds at once; pairs that
    share too few are left out."""
    labels, by_seeds = list(scores), defaultdict(list)
    seeds_of = [frozenset(scores[label]) for label in labels]
    for i, j in places:
        by_seeds[seeds_of[i] & seeds_of[j]].append((i, j))
    for common, found in by_seeds.items():
        if len(common) < noise.fewest:
            continue
        seeds = sorted(common)
        having = sorted({place for pair in found for place in pair})
        order = {place: index for index, place in enumerate(having)}
        tensor = np.asarray([[scores[labels[h]][seed] for seed in seeds] for h in having])
        rows, columns = (np.array([order[pair[side]] for pair in found]) for side in (0, 1))
        yield seeds, found, noise.of_pairs(tensor).pick(rows, columns)


def against(
    scores: Mapping[str, Scores],
    places: Sequence[tuple[int, int]],
    noise: Noise,
    pairs: Sequence[Pair],
) -> dict[str, Difference]:
    """The planned pairs: each strategy less the reference, over the seeds that both have."""
    labels, found = list(scores), dict[str, Difference]()
    corrected = {frozenset((pair.first, pair.second)): pair.p_corrected for pair in pairs}
    planned = sum(frozenset((labels[i], labels[j])) in corrected for i, j in places)
    level = LEVEL * (PLANNED if planned < len(pairs) else 1.0) / max(planned, 1)
    for seeds, some, spread in batches(scores, places, noise):
        half, joint = spread.half_widths(LEVEL), spread.half_widths(level)
        p, shown = spread.p_values(), spread.minimum_detectable(level)
        for n, (i, j) in enumerate(some):
            value = float(spread.mean[n])
            found[labels[i]] = Difference(
                value=value,
                low=value - float(half[n]),
                high=value + float(half[n]),
                joint_low=value - float(joint[n]),
                joint_high=value + float(joint[n]),
                p=float(p[n]),
                p_corrected=corrected[frozenset((labels[i], labels[j]))],
                minimum_detectable=float(shown[n]),
                seeds=seeds,
                rows=spread.rows,
            )
    return found


def all_pairs(
    scores: Mapping[str, Scores], places: Iterable[tuple[int, int]], reference: str, noise: Noise
) -> list[Pair]:
    """Every two strategies that share a seed."""
    labels = list(scores)
    values: dict[tuple[int, int], tuple[float, float]] = {}
    for _, some, spread in batches(scores, places, noise):
        numbers = zip(spread.mean.tolist(), spread.p_values().tolist(), strict=True)
        values.update(zip(some, numbers, strict=True))
    ordered = sorted(values)
    planned = [reference in (labels[i], labels[j]) for i, j in ordered]
    corrected = holm([values[place][1] for place in ordered], weights_of(planned))
    return [
        Pair(first=labels[i], second=labels[j], value=mean, p=p, p_corrected=holms)
        for (i, j), holms in zip(ordered, corrected, strict=True)
        for mean, p in [values[i, j]]
    ]


def weights_of(planned: Sequence[bool]) -> list[float]:
    """Each pair's share of the error rate: half for the planned pairs, half for the others."""
    many = sum(planned)
    if many in (0, len(planned)):
        return [1.0] * len(planned)
    others = len(planned) - many
    return [PLANNED / many if each else (1 - PLANNED) / others for each in planned]


def group_letters(labels: Sequence[str], pairs: Sequence[Pair]) -> dict[str, str]:
    """Letters that strategies share if they do not differ significantly, or were not compared."""
    place = {label: index for index, label in enumerate(labels)}
    alike = [set(range(len(labels))) - {index} for index in range(len(labels))]
    for pair in pairs:
        if pair.differ:
            one, other = place[pair.first], place[pair.second]
            alike[one].discard(other)
            alike[other].discard(one)
    found = groups(alike)
    if found is None:
        return {}
    return dict(zip(labels, letters(len(labels), found), strict=True))
