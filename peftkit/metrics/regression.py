"""Regression metrics: correlations, errors and R2, with intervals over rows.

Values are those of scipy and scikit-learn. A bootstrap sample is a weight for each row; its ranks
are those of the sample itself, in which a row that is sampled twice is a tie.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from peftkit.metrics.bootstrap import BLOCK_CELLS, ratio, row_weights, score_of
from peftkit.metrics.counts import pseudo_values
from peftkit.metrics.functions import function_row_values, function_score
from peftkit.metrics.registry import Score, find_metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MEASURES = ("spearman", "pearson", "rmse", "mae", "r2")
"""The metrics of each target."""


def regression_scores(
    right: Floats,
    predicted: Floats,
    names: Sequence[str],
    headline: str,
    resamples: int,
    seed: int = 0,
) -> dict[str, Score]:
    """Every measure of the numbers `predicted` (rows, targets) against the right ones, the headline
    first: the mean over the targets, and where there are several each target's as `rmse[name]`."""
    rng = np.random.default_rng(seed)
    rows, targets = right.shape
    points = [measured(right[:, t], predicted[:, t]) for t in range(targets)]
    samples: dict[str, list[Floats]] = {measure: [] for measure in MEASURES}
    for weights in blocks(rng, resamples, rows):
        found = [weighted(right[:, t], predicted[:, t], weights) for t in range(targets)]
        for measure, lists in samples.items():
            lists.append(np.stack([each[measure] for each in found]))
    scores = {}
    for measure, lists in samples.items():
        own = np.array([point[measure] for point in points])
        draws = np.concatenate(lists, axis=1) if lists else np.empty((targets, 0))
        scores[measure] = score_of(float(own.mean()), draws.mean(axis=0), rows)
        for target, name in enumerate(names if targets > 1 else ()):
            scores[f"{measure}[{name}]"] = score_of(float(own[target]), draws[target], rows)
    if headline not in scores:
        scores[headline] = function_score(find_metric(headline), right, predicted, resamples, seed)
    return {headline: scores[headline]} | scores


def measured(right: Floats, predicted: Floats) -> dict[str, float]:
    """Every measure of one target; NaN where a side without spread leaves it undefined."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    flat = len(right) < 2 or np.ptp(right) == 0
    none = flat or np.ptp(predicted) == 0
    return {
        "spearman": math.nan if none else float(spearmanr(right, predicted).statistic),
        "pearson": math.nan if none else float(pearsonr(right, predicted).statistic),
        "rmse": float(root_mean_squared_error(right, predicted)),
        "mae": float(mean_absolute_error(right, predicted)),
        "r2": math.nan if flat else float(r2_score(right, predicted)),
    }


def weighted(right: Floats, predicted: Floats, weights: Floats) -> dict[str, Floats]:
    """Every measure of one target under each line of row weights: (samples, rows) -> (samples)."""
    totals = error_totals(weights @ error_counts(right, predicted))
    ranks = weighted_ranks(weights, right), weighted_ranks(weights, predicted)
    return {"spearman": correlation(weights, *ranks), **totals}


def weighted_ranks(weights: Floats, values: Floats) -> Floats:
    """Each row's rank within each sample, ties at their mean: (samples, rows); those of rows that
    a sample lacks say nothing."""
    order = np.argsort(values, kind="stable")
    first = np.r_[True, np.diff(values[order]) > 0]
    ties = np.add.reduceat(weights[:, order], np.flatnonzero(first), axis=1)
    ranks = np.cumsum(ties, axis=1) - ties + (ties + 1) / 2
    group = np.empty(len(values), dtype=int)
    group[order] = np.cumsum(first) - 1
    return np.asarray(ranks[:, group])


def correlation(weights: Floats, one: Floats, other: Floats) -> Floats:
    """Pearson's correlation of two (samples, rows) under weights of that shape."""
    total = weights.sum(axis=1, keepdims=True)
    apart, besides = (
        values - (weights * values).sum(axis=1, keepdims=True) / total for values in (one, other)
    )
    together = np.einsum("sr,sr,sr->s", weights, apart, besides)
    spreads = (np.einsum("sr,sr,sr->s", weights, each, each) for each in (apart, besides))
    return ratio(together, np.sqrt(np.prod(list(spreads), axis=0)))


def error_counts(right: Floats, predicted: Floats) -> Floats:
    """The counts of each row for every measure but `spearman`: (rows, 8)."""
    error = predicted - right
    # correlation is blind to shifts; sums of large numbers are not
    y, p = right - right.mean(), predicted - predicted.mean()
    return np.stack([np.ones_like(y), y, p, y * y, p * p, y * p, error**2, abs(error)], axis=1)


def error_totals(sums: Floats) -> dict[str, Floats]:
    """Every measure but the ranks' from sums of counts: (many, 8) to (many)."""
    rows, y, p, yy, pp, yp, squared, absolute = sums.T
    spread, predicted_spread = (with_floor(s - m**2 / rows, s) for m, s in ((y, yy), (p, pp)))
    return {
        "pearson": ratio(yp - y * p / rows, np.sqrt(spread * predicted_spread)),
        "rmse": np.sqrt(squared / rows),
        "mae": absolute / rows,
        "r2": 1 - ratio(squared, spread),
    }


def with_floor(spread: Floats, scale: Floats) -> Floats:
    """Sums of squares, 0 where they are rounding errors of what they were computed from."""
    return np.where(spread > 1e-12 * scale, spread, 0.0)


def regression_row_values(
    right: Floats, predicted: Floats, metric: str, names: Sequence[str]
) -> Floats | None:
    """The value of each row for `metric`: the jackknife's pseudo-values (see `counts`), (rows,)."""
    if (known := find_metric(metric)).function is not None:
        return function_row_values(known, right, predicted)
    measure, _, rest = metric.partition("[")
    if measure not in MEASURES or (rest and rest[:-1] not in names):
        return None
    targets = [list(names).index(rest[:-1])] if rest else range(right.shape[1])
    found = [target_row_values(right[:, t], predicted[:, t], measure) for t in targets]
    defined = [each for each in found if each is not None]
    return np.mean(defined, axis=0) if len(defined) == len(found) else None


def target_row_values(right: Floats, predicted: Floats, measure: str) -> Floats | None:
    """The pseudo-values of one target's measure; None where it, or it without a row, is undefined.

    A mean over rows needs no jackknife: `mae`'s are the errors.
    """
    if measure != "spearman":
        return pseudo_values(error_counts(right, predicted), error_totals, measure)
    rows, score = len(right), measured(right, predicted)[measure]
    if math.isnan(score):
        return None
    size = max(1, BLOCK_CELLS // rows)
    parts = []
    for start in range(0, rows, size):
        weights = np.ones((min(size, rows - start), rows))
        weights[np.arange(len(weights)), start + np.arange(len(weights))] = 0
        parts.append(weighted(right, predicted, weights)[measure])
    values = rows * score - (rows - 1) * np.concatenate(parts)
    return values - values.mean() + score if np.isfinite(values).all() else None


def blocks(rng: np.random.Generator, resamples: int, rows: int) -> Iterator[Floats]:
    """The weights of bootstrap samples, so many at a time that they fit in memory."""
    most = max(1, BLOCK_CELLS // max(1, rows))
    for start in range(0, resamples, most):
        yield row_weights(rng, min(most, resamples - start), rows)
