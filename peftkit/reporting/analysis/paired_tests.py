"""Paired tests of strategies whose seeds are all scored on the same test rows.

Seeds and rows are crossed: d[s, i] = delta + seed[s] + row[i] + rest[s, i], all but delta random
(the two-way layout of Owen, The pigeonhole bootstrap, 2007, arXiv:0712.1111, and of the readers and
cases in Dorfman, Berbaum and Metz, Investigative Radiology 27, 1992). The mean's variance is then
the seeds' part A = var over s of d[s, .] / S, which holds the rest's part already, and the rows'
part D = (var over i of d[., i]) / n without that of the rest. A has S - 1 degrees of freedom, D
nearly as many as there are rows, so that (mean - delta) behaves as sqrt(A) t + sqrt(D) z with t of
Student's on S - 1 degrees and z normal: the distribution of Behrens and Fisher, conservative
(Robinson, Annals of Statistics 4, 1976). Interval, p-value and power all come from it.

One approximate t on Satterthwaite's (or Hillis's) degrees of freedom for A + D was tried first:
with 3 seeds its 95 % intervals cover 91 to 93 % when seeds vary by 1 to 2 points, since the degrees
are guessed from two. The mixture, in 10,000 simulations a setting (two classifiers' hits; seeds
that vary by 0 to 3 points; 500 to 2,000 rows), covers 95.1 to 96.7 % with 5 seeds and 95.1 to
97.0 % with 3, but for 3 seeds that vary so little (0 to 1 point) that the rows' noise is much the
larger: there it covers up to 97.6 %, intervals wider than they need be and p on the safe side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtr, stdtrit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

NODES = 64
"""Nodes of the integral over the seeds' variance: at least four digits of Student's p."""
FEWEST = 4
"""The smallest number of rows that are assumed to differ (the rule of three, two-sided)."""
HALVINGS = 24
"""Halvings of the bracket around an interval's end."""


@dataclass(frozen=True)
class Spread:
    """Means of differences with the two parts of their variance: arrays with a value for each
    comparison."""

    mean: Floats
    seed_variance: Floats
    """The part of the mean's variance from seeds; 0 for one seed, which cannot show it."""
    row_variance: Floats
    """The part of the mean's variance from test rows."""
    seeds: int
    rows: int

    @classmethod
    def of(cls, differences: Floats, step: float = 1.0) -> Spread:
        """The spread of differences (..., seeds, rows), all comparisons at once.

        `step` is the largest difference of one row: the rows' variance is never below that of
        `FEWEST` rows that differ by it, so that runs that agree on every row have an interval too.
        """
        seeds, rows = differences.shape[-2:]
        by_seed, by_row = differences.mean(axis=-1), differences.mean(axis=-2)
        mean = by_seed.mean(axis=-1)
        rest = differences - by_seed[..., :, None] - by_row[..., None, :] + mean[..., None, None]
        return cls.of_squares(
            mean,
            np.square(by_seed - mean[..., None]).sum(axis=-1),
            np.square(by_row - mean[..., None]).sum(axis=-1),
            np.square(rest).sum(axis=(-2, -1)),
            (seeds, rows),
            step,
        )

    @classmethod
    def of_pairs(cls, scores: Floats, step: float = 1.0) -> Spread:
        """The spread of all pairs' differences: (strategies, seeds, rows) -> (a, b) of a - b.

        The same numbers as `of` gives, by products of matrices instead of a pass a pair.
        """
        count, seeds, rows = scores.shape
        by_seed, by_row = scores.mean(axis=2), scores.mean(axis=1)
        mean = by_seed.mean(axis=1)
        rest = scores - by_seed[:, :, None] - by_row[:, None, :] + mean[:, None, None]
        return cls.of_squares(
            mean[:, None] - mean[None, :],
            distances(by_seed - mean[:, None]),
            distances(by_row - mean[:, None]),
            distances(rest.reshape(count, -1)),
            (seeds, rows),
            step,
        )

    @classmethod
    def of_squares(
        cls,
        mean: Floats,
        seed_squares: Floats,
        row_squares: Floats,
        rest_squares: Floats,
        shape: tuple[int, int],
        step: float,
    ) -> Spread:
        """The spread from the sums of squares of the two-way layout."""
        seeds, rows = shape
        by_row = row_squares / max(rows - 1, 1) / rows
        by_seed = seed_squares / max(seeds - 1, 1) / seeds
        rest = rest_squares / max((seeds - 1) * (rows - 1), 1) / (seeds * rows)
        floor = FEWEST * step**2 / rows**2  # by chance the rest's part may exceed the rows'
        return cls(mean, by_seed, np.maximum(by_row - rest, floor), seeds, rows)

    def pick(self, first: Integers, second: Integers) -> Spread:
        """A selection of all pairs, by the indices of their strategies."""
        return Spread(
            self.mean[first, second],
            self.seed_variance[first, second],
            self.row_variance[first, second],
            self.seeds,
            self.rows,
        )

    def p_values(self, truth: float = 0.0) -> Floats:
        """The two-sided p-values of the means, if `truth` is the true difference."""
        return tails(
            self.mean - truth, self.seed_variance, self.row_variance, self.seeds, self.rows
        )

    def half_widths(self, level: float = 0.05) -> Floats:
        """Half the widths of intervals that miss the true difference in `level` of cases."""
        return criticals(self.seed_variance, self.row_variance, self.seeds, self.rows, level)

    def minimum_detectable(self, level: float = 0.05, power: float = 0.8) -> Floats:
        """The smallest true differences that are significant at `level` with `power`, given the
        estimated variances."""
        if self.seeds == 1:
            normal = stdtrit(self.rows - 1, power) * np.sqrt(self.row_variance)
            return np.asarray(self.half_widths(level) + normal)
        ratios, weights = variance_ratios(self.seeds - 1, NODES // 3)
        ends = criticals(
            self.seed_variance[..., None] * ratios,
            np.broadcast_to(self.row_variance[..., None], (*self.mean.shape, len(ratios))),
            self.seeds,
            self.rows,
            level,
        )
        deviation = np.sqrt(self.seed_variance + self.row_variance)[..., None]

        def shown(true: Floats) -> Floats:
            both = ndtr((true[..., None] - ends) / deviation)
            both += ndtr((-true[..., None] - ends) / deviation)
            return np.asarray((both * weights).sum(axis=-1))

        return bisect(lambda true: power - shown(true), ends.mean(axis=-1) + deviation[..., 0])


@dataclass(frozen=True)
class SeedsAndRows:
    """The noise of runs with several seeds that are all scored on the same rows."""

    step: float
    """The largest difference of one row."""
    fewest = 1
    """Seeds that two strategies must share to be compared."""

    def of(self, differences: Floats) -> Spread:
        """The spread of differences (..., seeds, rows)."""
        return Spread.of(differences, self.step)

    def of_pairs(self, scores: Floats) -> Spread:
        """The spread of all pairs' differences: (strategies, seeds, rows) -> (a, b)."""
        return Spread.of_pairs(scores, self.step)


def distances(rows: Floats) -> Floats:
    """Squared distances of all pairs of rows: (count, cells) -> (count, count)."""
    products = rows @ rows.T
    own = products.diagonal()
    return np.maximum(own[:, None] + own[None, :] - 2 * products, 0.0)


@cache
def variance_ratios(freedom: int, nodes: int = NODES) -> tuple[Floats, Floats]:
    """Values of chi-square over its degrees of freedom, with weights that integrate over it.

    Gauss and Legendre's points in the quantile's fourth root: the tails come from small values.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    root = (points + 1) / 2
    return 2 * gammaincinv(freedom / 2, root**4) / freedom, 2 * root**3 * weights


def tails(mean: Floats, by_seed: Floats, by_row: Floats, seeds: int, rows: int) -> Floats:
    """Both tails beyond `mean` of sqrt(by_seed) t + sqrt(by_row) z; one seed: of Student's t."""
    if seeds == 1:
        return np.asarray(2 * stdtr(max(rows - 1, 1), -np.abs(mean) / np.sqrt(by_row)))
    ratios, weights = variance_ratios(seeds - 1)
    # t is a normal whose variance is divided by a ratio: given that, the sum is normal
    deviation = np.sqrt(by_seed[..., None] / ratios + by_row[..., None])
    return np.asarray((2 * ndtr(-np.abs(mean)[..., None] / deviation) * weights).sum(axis=-1))


def criticals(by_seed: Floats, by_row: Floats, seeds: int, rows: int, level: float) -> Floats:
    """The critical values: means beyond which both tails have probability `level`."""
    if seeds == 1:
        return np.asarray(stdtrit(max(rows - 1, 1), 1 - level / 2) * np.sqrt(by_row))
    widest = stdtrit(seeds - 1, 1 - level / 2) * np.sqrt(by_seed + by_row)
    return bisect(lambda end: tails(end, by_seed, by_row, seeds, rows) - level, widest)


def bisect(excess: Callable[[Floats], Floats], guess: Floats) -> Floats:
    """The positive roots of a decreasing function, elementwise."""
    low, high = np.zeros_like(guess), guess
    while (above := excess(high) > 0).any():
        high = np.where(above, 2 * high, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = excess(middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2
