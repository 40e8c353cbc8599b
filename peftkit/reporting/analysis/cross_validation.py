"""Folds: strategies compared by cross-validation, whose training sets overlap.

d[j] is the difference of two strategies on fold j. Any two folds' training sets share most of their
rows, so that the d[j] resemble each other more than those of fresh samples would, and s^2 / k, with
s^2 their variance over k folds, is too small for their mean's: Student's t on it tells ties apart
too often. Nadeau and Bengio (Inference for the generalization error, Machine Learning 52, 2003)
take (1/k + n_test / n_train) s^2 in its place, and t on k - 1 degrees of freedom.

Without an unbiased estimator to be had (Bengio and Grandvalet, Journal of Machine Learning Research
5, 2004) it is a rule of thumb: near the level it claims in simulations (tests/test_folds.py), never
exactly there.
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

    from peftkit.reporting.analysis.summaries import Member

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Folding:
    """A cross-validation: a way to spread differences, as seeds on common rows are another."""

    folds: int
    overlap: float
    """Rows that a fold scores for each that it learns from or chooses on."""
    rows: int
    """Rows that are scored in all folds that were run."""
    fewest = 2
    """Folds that two strategies must share to be compared."""

    def of(self, differences: Floats) -> Spread:
        """The spread of differences (..., folds), all comparisons at once."""
        taken = differences.shape[-1]
        variance = (1 / taken + self.overlap) * differences.var(axis=-1, ddof=1)
        # folds that agree exactly have an interval too, as runs that agree on every row have
        least = np.full_like(variance, FEWEST / self.rows**2)
        return Spread(differences.mean(axis=-1), variance, least, taken, self.rows)

    def of_pairs(self, scores: Floats) -> Spread:
        """The spread of all pairs' differences: (strategies, folds) -> (a, b) of a - b."""
        return self.of(scores[:, None] - scores[None, :])

    def missing(self, members: Sequence[Member]) -> list[str]:
        """A note about each strategy that was not scored in all folds."""
        every = range(self.folds)
        left = {m.label: set(every) - {run.fold for run in m.finished} for m in members}
        return [
            f"{label} has no score in {len(folds)} of {self.folds} folds: "
            f"{listed(list(map(str, sorted(folds))))}"
            for label, folds in left.items()
            if folds
        ]


def folding_of(runs: Sequence[Run]) -> Folding | None:
    """The cross-validation that runs are the folds of; None where they are of none.

    Raises `RunError` where they are not all of one.
    """
    asked: dict[int | None, str] = {}
    for run in runs:
        asked.setdefault(run.record.recipe["data"].get("folds"), run.where)
    if set(asked) == {None}:
        return None
    if len(asked) > 1:
        told = ", ".join(f"{folds or 'no'} in {where}" for folds, where in asked.items())
        raise RunError(
            f"numbers of folds differ ({told}): their scores are of other rows and cannot be "
            "paired - report them apart"
        )
    [folds] = filter(None, asked)
    sizes = {run.fold: run.record.rows for run in runs}
    scored = [rows.get("test", 0) for rows in sizes.values()]
    others = [rows.get("train", 0) + rows.get("validation", 0) for rows in sizes.values()]
    overlap = statistics.fmean(
        test / max(other, 1) for test, other in zip(scored, others, strict=True)
    )
    return Folding(folds, overlap, max(sum(scored), 1))
