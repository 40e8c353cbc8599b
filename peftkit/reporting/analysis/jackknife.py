"""Row values: the contribution of each test row to a score; their mean is the score.

For accuracy these are the hits. A score that is not a mean over rows (F1, MCC, ROC-AUC) has the
jackknife's pseudo-values, n score - (n - 1) score without the row, shifted to have the score as
their mean; treated as if they were rows' scores, as Dorfman, Berbaum and Metz do (Investigative
Radiology 27, 1992). Their variance is the jackknife's, for ROC-AUC DeLong's (Biometrics 44, 1988).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from peftkit.metrics.bootstrap import name_metrics
from peftkit.metrics.functions import function_row_values
from peftkit.metrics.registry import find_metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


def row_scores(
    metric: str,
    label_ids: Integers,
    predicted_ids: Integers,
    probabilities: Floats | None,
    names: Sequence[str],
) -> Floats | None:
    """The values (rows) for `metric`; None if it is undefined, or would be without some row."""
    if metric == "accuracy":
        return np.asarray(label_ids == predicted_ids, dtype=float)
    if metric == "roc_auc":
        values = None if probabilities is None else area_values(label_ids, probabilities)
    elif (found := find_metric(metric)).function is not None:
        values = function_row_values(found, label_ids, predicted_ids)
    else:
        values = counted_values(metric, label_ids, predicted_ids, names)
    return values if values is not None and np.isfinite(values).all() else None


def counted_values(
    metric: str, label_ids: Integers, predicted_ids: Integers, names: Sequence[str]
) -> Floats | None:
    """Pseudo-values of a metric of the confusion matrix: rows in one of its cells share theirs."""
    classes, rows = len(names), len(label_ids)
    cells = label_ids * classes + predicted_ids
    counts = np.bincount(cells, minlength=classes**2)
    used = np.flatnonzero(counts)
    without = counts - np.eye(classes**2, dtype=np.int64)[used]
    matrices = np.concatenate([counts[None], without]).reshape(-1, classes, classes)
    known = name_metrics(matrices, np.full(len(matrices), np.nan), names)
    if metric not in known:
        return None
    whole, *left = known[metric]
    by_cell = np.full(classes**2, np.nan)
    by_cell[used] = rows * whole - (rows - 1) * np.asarray(left)
    return centred(by_cell[cells], float(whole))


def area_values(label_ids: Integers, probabilities: Floats) -> Floats | None:
    """Pseudo-values of ROC-AUC: of class 1 of two; of more, each against the rest, their mean."""
    classes = probabilities.shape[1]
    ranked = [1] if classes == 2 else range(classes)
    found = [binary_area_values(label_ids == each, probabilities[:, each]) for each in ranked]
    return np.asarray(np.mean(found, axis=0))


def binary_area_values(positive: NDArray[np.bool_], ranking: Floats) -> Floats:
    """Pseudo-values of one class's area; NaN where a row leaves none on its side."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    rows = positives + negatives
    if min(positives, negatives) < 2 or not np.isfinite(ranking).all():
        return np.full(rows, np.nan)
    wins = np.empty(rows)
    wins[positive] = placed(ranking[positive], ranking[~positive])
    wins[~positive] = positives - placed(ranking[~positive], ranking[positive])
    total = wins[positive].sum()
    pairs_left = np.where(positive, (positives - 1) * negatives, positives * (negatives - 1))
    area = float(total / (positives * negatives))
    return centred(rows * area - (rows - 1) * (total - wins) / pairs_left, area)


def placed(values: Floats, among: Floats) -> Floats:
    """How many of `among` each value exceeds; ties count half."""
    order = np.sort(among)
    below = np.searchsorted(order, values, side="left")
    return np.asarray((below + np.searchsorted(order, values, side="right")) / 2)


def centred(values: Floats, score: float) -> Floats:
    """The values shifted to the score, from which the jackknife's own mean differs slightly."""
    return np.asarray(values - values.mean() + score)
