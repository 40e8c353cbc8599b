"""Scores that are functions of sums over rows, with their intervals and row values.

Precision and recall of entities, ROUGE, chrF, bits per byte: whatever a corpus score is, it is a
function of counts that add up over the rows. So a bootstrap sample is a sum with other weights, and
the score without a row is the score of the sum without its counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from peftkit.metrics.bootstrap import BLOCK_CELLS, row_weights, score_of
from peftkit.metrics.registry import Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Totals = Callable[["Floats"], "dict[str, Floats]"]
"""Sums of counts (many, kinds) to every score by name (many), NaN where undefined."""


def tally_scores(
    counts: Floats, totals: Totals, headline: str, resamples: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Every score of `counts` (rows, kinds) with its 95 % interval, the headline first."""
    points = totals(counts.sum(axis=0, keepdims=True))
    draws = totals(resampled_sums(counts, resamples, seed)) if resamples else {}
    none = np.empty(0)
    found = {
        name: score_of(float(value[0]), draws.get(name, none), len(counts))
        for name, value in points.items()
    }
    return {headline: found[headline]} | found


def resampled_sums(counts: Floats, resamples: int, seed: int) -> Floats:
    """Sums of the counts over bootstrap samples of the rows: (resamples, kinds)."""
    rng = np.random.default_rng(seed)
    most = max(1, BLOCK_CELLS // max(1, len(counts)))
    sizes = [min(most, resamples - start) for start in range(0, resamples, most)]
    return np.concatenate([row_weights(rng, size, len(counts)) @ counts for size in sizes])


def pseudo_values(counts: Floats, totals: Totals, metric: str) -> Floats | None:
    """The value of each row for `metric`: the jackknife's pseudo-values, shifted so that their mean
    is the score; None where the metric, or the metric without some row, is undefined."""
    rows = len(counts)
    if rows < 2:
        return None
    whole = counts.sum(axis=0, keepdims=True)
    known = totals(np.concatenate([whole, whole - counts]))
    if metric not in known:
        return None
    score, left = float(known[metric][0]), known[metric][1:]
    if math.isnan(score) or np.isnan(left).any():
        return None
    values = rows * score - (rows - 1) * left
    return np.asarray(values - values.mean() + score)


def precision_recall_f1(
    hits: Floats, predicted: Floats, there: Floats, nothing: float = math.nan
) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 from numbers of true positives, predicted and true items.

    As in scikit-learn, seqeval and the scorer of SemEval-2010 Task 8 a ratio of 0 to 0 is 0; where
    there are neither predicted nor true items, all three are `nothing`.
    """
    unseen = predicted + there == 0
    precision, recall, f1 = (
        np.where(unseen, nothing, part / np.where(whole > 0, whole, 1))
        for part, whole in ((hits, predicted), (hits, there), (2 * hits, predicted + there))
    )
    return precision, recall, f1
