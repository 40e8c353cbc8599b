"""Classification metrics of many bootstrap samples at once, and percentile intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.metrics.registry import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

BLOCK_CELLS = 4_000_000  # 32 MB of weights at a time: 25,000 rows would need 200 MB at once


def resample_confusion(confusion: Integers, rng: np.random.Generator, resamples: int) -> Integers:
    """The confusion matrices of bootstrap samples of its rows: (resamples, classes, classes).

    Rows in one cell are alike, so that drawing rows with replacement is drawing the cells' counts
    from a multinomial.
    """
    rows = confusion.sum()
    samples = rng.multinomial(rows, (confusion / rows).ravel(), size=resamples)
    return samples.reshape(resamples, *confusion.shape)


def name_metrics(confusions: Integers, areas: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Every metric by name, each (resamples), NaN where undefined."""
    counts = confusions.astype(float)
    hits = counts.diagonal(axis1=1, axis2=2)
    labeled, predicted = counts.sum(axis=2), counts.sum(axis=1)
    precision, recall = ratio(hits, predicted), ratio(hits, labeled)
    f1 = ratio(2 * hits, labeled + predicted)
    macro_f1 = mean_of_defined(f1)
    values = {
        "accuracy": hits.sum(axis=1) / labeled.sum(axis=1),
        "f1": f1[:, 1] if len(names) == 2 else macro_f1,
        "macro_f1": macro_f1,
        "macro_precision": mean_of_defined(precision),
        "macro_recall": mean_of_defined(recall),
        "mcc": matthews_correlation(hits, labeled, predicted),
        "roc_auc": areas,
    }
    for i, name in enumerate(names):
        values[f"precision[{name}]"] = precision[:, i]
        values[f"recall[{name}]"] = recall[:, i]
        values[f"f1[{name}]"] = f1[:, i]
    return values


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, NaN where the denominator is 0."""
    import numpy as np

    quotient = np.full(denominator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def mean_of_defined(values: Floats) -> Floats:
    """The mean over classes that have a value: (resamples, classes) -> (resamples)."""
    import numpy as np

    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(float))


def matthews_correlation(hits: Floats, labeled: Floats, predicted: Floats) -> Floats:
    """Gorodkin's R_K, which is Matthews' coefficient for two classes (scikit-learn's form)."""
    import numpy as np

    rows = labeled.sum(axis=1)
    covariance = hits.sum(axis=1) * rows - (labeled * predicted).sum(axis=1)
    spread = (rows**2 - (labeled**2).sum(axis=1)) * (rows**2 - (predicted**2).sum(axis=1))
    return ratio(covariance, np.sqrt(spread))


def roc_auc(weights: Floats, label_ids: Integers, probabilities: Floats) -> Floats:
    """ROC-AUC under each line of row weights: (resamples, rows) -> (resamples); NaN: undefined."""
    import numpy as np

    classes = range(probabilities.shape[1])
    ranked = [1] if len(classes) == 2 else classes
    areas = [area(weights, label_ids == i, probabilities[:, i]) for i in ranked]
    mean: Floats = np.mean(areas, axis=0)
    return mean


def area(weights: Floats, positive: NDArray[np.bool_], ranking: Floats) -> Floats:
    """How often a positive row ranks above a negative one; ties count half."""
    import numpy as np

    order = np.flatnonzero(~positive)[np.argsort(ranking[~positive])]
    weight_below = np.zeros((len(weights), len(order) + 1))
    np.cumsum(weights[:, order], axis=1, out=weight_below[:, 1:])
    lowest = np.searchsorted(ranking[order], ranking[positive], side="left")
    highest = np.searchsorted(ranking[order], ranking[positive], side="right")
    of_positives = weights[:, positive]
    wins = np.einsum("rp,rp->r", of_positives, weight_below[:, lowest] + weight_below[:, highest])
    return ratio(wins / 2, of_positives.sum(axis=1) * weight_below[:, -1])


def resample_roc_auc(
    label_ids: Integers, probabilities: Floats, rng: np.random.Generator, resamples: int
) -> Floats:
    """ROC-AUC of `resamples` bootstrap samples of the rows, a block of samples at a time."""
    import numpy as np

    most = max(1, BLOCK_CELLS // len(label_ids))
    sizes = [min(most, resamples - start) for start in range(0, resamples, most)]
    weights = (row_weights(rng, size, len(label_ids)) for size in sizes)
    blocks = [roc_auc(block, label_ids, probabilities) for block in weights]
    return np.concatenate([np.empty(0), *blocks])


def row_weights(rng: np.random.Generator, resamples: int, rows: int) -> Floats:
    """How often each bootstrap sample holds each row: (resamples, rows)."""
    import numpy as np

    samples = rng.integers(rows, size=(resamples, rows)) + rows * np.arange(resamples)[:, None]
    counts = np.bincount(samples.ravel(), minlength=samples.size)
    return counts.reshape(resamples, rows).astype(float)


def score_of(value: float, draws: Floats, rows: int) -> Score:
    """`value` with its percentile interval, over the resamples in which the metric is defined."""
    import numpy as np

    defined = draws[~np.isnan(draws)]
    if math.isnan(value) or rows < 2 or not len(defined):  # one row cannot say how others vary
        return Score(value=None if math.isnan(value) else value, n=rows)
    low, high = np.percentile(defined, (2.5, 97.5)).tolist()
    return Score(value=value, low=low, high=high, n=rows)
