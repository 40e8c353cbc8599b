"""Comparison of strategies by cross-validation, whose training sets overlap.

d[j] is the difference of two strategies on fold j. The training sets of two folds share most of
their rows, so the d[j] are positively correlated and s^2 / k, with s^2 their variance over k folds,
underestimates the variance of their mean: Student's t has too many false positives. Nadeau and
Bengio (Inference for the generalization error, Machine Learning 52, 2003) use
(1/k + n_test / n_train) s^2 instead, and t on k - 1 degrees of freedom.

There is no unbiased estimator (Bengio and Grandvalet, JMLR 5, 2004).
This one is an approximation: near its nominal level in simulations
(tests/reporting/test_cross_validation_tests.py), never exactly there.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peftkit.errors import RunError
from peftkit.reporting.analysis.paired_tests import FEWEST, Spread
from peftkit.reporting.analysis.records import Run, listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peftkit.reporting.analysis.summaries import StrategyRuns

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CrossValidation:
    """The noise of the folds of a cross-validation (an alternative to `SeedsAndRows`)."""

    folds: int
    overlap: float
    """Test rows of a fold for each of its other rows."""
    rows: int
    """Test rows of all folds that were run."""
    fewest = 2
    """Folds that two strategies must share to be compared."""

    def of(self, differences: Floats) -> Spread:
        """The spread of differences (..., folds), all comparisons at once."""
        taken = differences.shape[-1]
        variance = (1 / taken + self.overlap) * differences.var(axis=-1, ddof=1)
        # folds that agree exactly have an interval too, like runs that agree on every row
        least = np.full_like(variance, FEWEST / self.rows**2)
        return Spread(differences.mean(axis=-1), variance, least, taken, self.rows)

    def of_pairs(self, scores: Floats) -> Spread:
        """The spread of all pairs' differences: (strategies, folds) -> (a, b) of a - b."""
        return self.of(scores[:, None] - scores[None, :])

    def missing(self, strategies: Sequence[StrategyRuns]) -> list[str]:
        """A note about each strategy that was not scored in all folds."""
        every = range(self.folds)
        left = {m.label: set(every) - {run.fold for run in m.finished} for m in strategies}
        return [
            f"{label} has no score in {len(folds)} of {self.folds} folds: "
            f"{listed(list(map(str, sorted(folds))))}"
            for label, folds in left.items()
            if folds
        ]


def find_cross_validation(runs: Sequence[Run]) -> CrossValidation | None:
    """The cross-validation whose folds the runs are; None without one.

    Raises `RunError` if they have different numbers of folds.
    """
    counts: dict[int | None, str] = {}
    for run in runs:
        counts.setdefault(run.record.recipe["data"].get("folds"), run.where)
    if set(counts) == {None}:
        return None
    if len(counts) > 1:
        found = ", ".join(f"{folds or 'none'} in {where}" for folds, where in counts.items())
        raise RunError(
            f"numbers of folds differ ({found}): their test rows differ and cannot be paired - "
            "report them separately"
        )
    [folds] = filter(None, counts)
    sizes = {run.fold: run.record.rows for run in runs}
    scored = [rows.get("test", 0) for rows in sizes.values()]
    others = [rows.get("train", 0) + rows.get("validation", 0) for rows in sizes.values()]
    overlap = statistics.fmean(
        test / max(other, 1) for test, other in zip(scored, others, strict=True)
    )
    return CrossValidation(folds, overlap, max(sum(scored), 1))
