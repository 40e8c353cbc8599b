"""Multi-label metrics: F1, ranking metrics and exact match, with intervals over rows.

Values are those of scikit-learn. A bootstrap sample is a weight for each row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from peftkit.metrics.bootstrap import BLOCK_CELLS, mean_of_defined, ratio, row_weights, score_of
from peftkit.metrics.counts import pseudo_values
from peftkit.metrics.registry import Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Sets = NDArray[np.bool_]


def multilabel_scores(
    right: Sets,
    predicted: Sets,
    probabilities: Floats,
    names: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> dict[str, Score]:
    """Every score of the `predicted` sets and the `probabilities` against the `right` sets:
    (rows, labels) each. `micro_f1` first; `f1[name]` of each label."""
    rng, rows = np.random.default_rng(seed), len(right)
    points = multilabel_points(right, predicted, probabilities, names)
    counts = multilabel_counts(right, predicted, probabilities)
    samples: dict[str, list[Floats]] = {name: [] for name in points}
    for start in range(0, resamples, size_of_block(rows)):
        weights = row_weights(rng, min(size_of_block(rows), resamples - start), rows)
        found = multilabel_totals(weights @ counts, names) | {
            "map": mean_precision(weights, right, probabilities)
        }
        for name, lists in samples.items():
            lists.append(found[name])
    none = np.empty(0)
    return {
        name: score_of(point, np.concatenate([none, *samples[name]]), rows)
        for name, point in points.items()
    }


def multilabel_points(
    right: Sets, predicted: Sets, probabilities: Floats, names: Sequence[str]
) -> dict[str, float]:
    """Every score by name, as scikit-learn computes it; NaN where undefined."""
    from sklearn.metrics import (
        accuracy_score,
        average_precision_score,
        f1_score,
        label_ranking_average_precision_score,
    )

    there = right.any(axis=0)
    areas = [
        average_precision_score(right[:, each], probabilities[:, each])
        for each in np.flatnonzero(there)
    ]
    by_label = f1_score(right, predicted, average=None, zero_division=np.nan)
    return {
        "micro_f1": float(f1_score(right, predicted, average="micro", zero_division=np.nan)),
        "macro_f1": mean_of_defined(np.asarray(by_label)[None]).item(),
        "map": float(np.mean(areas)) if areas else math.nan,
        "lrap": float(label_ranking_average_precision_score(right, probabilities)),
        "exact_match": float(accuracy_score(right, predicted)),
    } | {f"f1[{name}]": float(f1) for name, f1 in zip(names, by_label, strict=True)}


def multilabel_counts(right: Sets, predicted: Sets, probabilities: Floats) -> Floats:
    """The counts of each row for every score but `map`: true positives, predicted and true ones of
    each label; ranking precision; whether all is right; 1."""
    rest = [
        ranking_precision(right, probabilities),
        (right == predicted).all(axis=1),
        np.ones(len(right)),
    ]
    return np.concatenate(
        [right & predicted, predicted, right, np.stack(rest, axis=1)], axis=1
    ).astype(float)


def multilabel_totals(sums: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Every score but `map` from sums of counts: (many, 3 labels + 3) to (many)."""
    labels = len(names)
    hits, predicted, there = (sums[:, labels * i : labels * (i + 1)] for i in range(3))
    ranked, exact, rows = sums[:, 3 * labels :].T
    f1 = ratio(2 * hits, predicted + there)
    return {
        "micro_f1": ratio(2 * hits.sum(axis=1), (predicted + there).sum(axis=1)),
        "macro_f1": mean_of_defined(f1),
        "lrap": ranked / rows,
        "exact_match": exact / rows,
    } | {f"f1[{name}]": f1[:, i] for i, name in enumerate(names)}


def ranking_precision(right: Sets, probabilities: Floats) -> Floats:
    """Of each row's right labels, the mean share of right ones among those ranked as high: (rows,);
    1 where none or all are right, as in scikit-learn."""
    above = np.zeros(right.shape)
    hits = np.zeros(right.shape)
    for each in range(right.shape[1]):  # labels^2 cells a row at once would be many
        higher = probabilities[:, each, None] >= probabilities
        above += higher
        hits += higher & right[:, each, None]
    count = right.sum(axis=1)
    shares = np.where(right, hits / above, 0.0).sum(axis=1) / np.maximum(count, 1)
    return np.where((count == 0) | (count == right.shape[1]), 1.0, shares)


def mean_precision(weights: Floats, right: Sets, probabilities: Floats) -> Floats:
    """Mean average precision of the labels that a sample has: (samples, rows) -> (samples)."""
    found = [
        average_precision(weights, right[:, i], probabilities[:, i]) for i in range(right.shape[1])
    ]
    return mean_of_defined(np.stack(found, axis=1))


def average_precision(weights: Floats, right: Sets, probabilities: Floats) -> Floats:
    """The mean over right rows of the precision at their place, ties together: (samples)."""
    order = np.argsort(-probabilities, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(probabilities[order]) < 0])
    here = weights[:, order]
    everything = np.add.reduceat(here, starts, axis=1).cumsum(axis=1)
    hits = np.add.reduceat(here * right[order], starts, axis=1)
    precision = np.cumsum(hits, axis=1) / np.maximum(everything, 1)
    return ratio((hits * precision).sum(axis=1), hits.sum(axis=1))


def multilabel_row_values(
    metric: str, right: Sets, predicted: Sets, probabilities: Floats, names: Sequence[str]
) -> Floats | None:
    """The value of each row for `metric`: the jackknife's pseudo-values (see `counts`), (rows,)."""
    rows = len(right)
    if metric != "map":
        counts = multilabel_counts(right, predicted, probabilities)
        return pseudo_values(counts, lambda sums: multilabel_totals(sums, names), metric)
    score = multilabel_points(right, predicted, probabilities, names)["map"]
    if math.isnan(score) or rows < 2:
        return None
    parts = []
    for start in range(0, rows, size_of_block(rows)):
        weights = np.ones((min(size_of_block(rows), rows - start), rows))
        weights[np.arange(len(weights)), start + np.arange(len(weights))] = 0
        parts.append(mean_precision(weights, right, probabilities))
    values = rows * score - (rows - 1) * np.concatenate(parts)
    return values - values.mean() + score if np.isfinite(values).all() else None


def best_thresholds(right: Sets, probabilities: Floats) -> list[float]:
    """For each label the threshold with the best F1, halfway between two probabilities; the one
    nearest to 0.5 of several; 0.5 for a label that no row has."""
    return [best_threshold(right[:, i], probabilities[:, i]) for i in range(right.shape[1])]


def best_threshold(right: Sets, probabilities: Floats) -> float:
    """The threshold of one label."""
    if not right.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(probabilities[order]) < 0, True])
    f1 = 2 * right[order].cumsum()[ends] / (ends + 1 + right.sum())
    places = probabilities[order][ends]
    below = np.r_[places[1:], 0.0]
    between = (places + below) / 2
    between = np.where(between > below, between, places)  # neighbors have nothing between them
    best = np.flatnonzero(f1 == f1.max())
    return float(between[best[np.abs(between[best] - 0.5).argmin()]])


def size_of_block(rows: int) -> int:
    """The number of samples whose weights are in memory at a time."""
    return max(1, BLOCK_CELLS // max(1, rows))
