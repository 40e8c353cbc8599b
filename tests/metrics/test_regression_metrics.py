"""Correlation: points are the libraries', resampled ranks those of the sample itself."""

import math
import time

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from peftkit.metrics.bootstrap import row_weights
from peftkit.metrics.regression import (
    MEASURES,
    measured,
    regression_row_values,
    regression_scores,
    weighted,
)

CHANCE = np.random.default_rng(0)


def numbers(rows: int, ties: bool = False, targets: int = 1) -> tuple[np.ndarray, np.ndarray]:
    right = CHANCE.normal(size=(rows, targets))
    said = right + CHANCE.normal(size=(rows, targets))
    return (right.round(), said.round()) if ties else (right, said)


def by_library(right: np.ndarray, said: np.ndarray) -> dict[str, float]:
    return {
        "spearman": float(spearmanr(right, said).statistic),
        "pearson": float(pearsonr(right, said).statistic),
        "rmse": float(root_mean_squared_error(right, said)),
        "mae": float(mean_absolute_error(right, said)),
        "r2": float(r2_score(right, said)),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_a_bootstrap_sample_scores_as_its_rows_written_out(ties: bool, shift: float) -> None:
    right, said = (each[:, 0] + shift for each in numbers(60, ties))
    weights = row_weights(np.random.default_rng(1), 20, 60)
    found = weighted(right, said, weights)
    for sample, times in enumerate(weights.astype(int)):
        expected = by_library(np.repeat(right, times), np.repeat(said, times))
        for measure in MEASURES:
            assert found[measure][sample] == pytest.approx(expected[measure], rel=1e-6), measure


def test_points_are_the_libraries() -> None:
    right, said = (each[:, 0] for each in numbers(80, ties=True))
    assert measured(right, said) == by_library(right, said)


def test_what_has_no_spread_is_undefined_and_the_errors_still_count() -> None:
    right, _ = numbers(50)
    found = regression_scores(right, np.full((50, 1), 0.3), ["value"], "spearman", 100)
    assert next(iter(found)) == "spearman"
    assert found["spearman"].value is None and found["pearson"].value is None
    assert found["rmse"].value == pytest.approx(float(np.sqrt(((right - 0.3) ** 2).mean())))
    assert found["r2"].value is not None and found["r2"].low is not None
    flat = regression_scores(np.ones((5, 1)), right[:5], ["value"], "spearman", 100)
    assert flat["r2"].value is None and flat["mae"].value is not None
    alone = regression_scores(right[:1], right[:1], ["value"], "spearman", 100)
    assert alone["spearman"].value is None and alone["rmse"].low is None


def test_intervals_hold_the_point_and_shrink_with_more_rows() -> None:
    few, many = (regression_scores(*numbers(n), ["value"], "spearman", 300) for n in (50, 800))
    for measure in MEASURES:
        for found in (few, many):
            score = found[measure]
            assert score.low is not None and score.high is not None and score.value is not None
            assert score.low < score.value < score.high, measure
    one, other = few["spearman"], many["spearman"]
    assert one.high - one.low > 2 * (other.high - other.low)  # type: ignore[operator]


def test_several_targets_have_their_own_scores_and_the_mean() -> None:
    right, said = numbers(60, targets=2)
    found = regression_scores(right, said, ["price", "age"], "rmse", 50)
    assert next(iter(found)) == "rmse"
    each = [found[f"rmse[{name}]"].value for name in ("price", "age")]
    assert each[1] == float(root_mean_squared_error(right[:, 1], said[:, 1]))
    assert found["rmse"].value == pytest.approx(sum(each) / 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("ties", [False, True])
def test_shares_of_the_rows_are_the_jackknifes_and_have_the_score_as_their_mean(ties: bool) -> None:
    right, said = numbers(30, ties, targets=2)
    scores = regression_scores(right, said, ["a", "b"], "spearman", 0)
    for metric in ("spearman", "pearson", "mae", "r2[b]", "spearman[a]"):
        shares = regression_row_values(right, said, metric, ["a", "b"])
        assert shares is not None and shares.shape == (30,)
        assert shares.mean() == pytest.approx(scores[metric].value)
    left = [by_library(*(np.delete(each[:, 0], i) for each in (right, said))) for i in range(30)]
    shares = regression_row_values(right, said, "spearman[a]", ["a", "b"])
    value = scores["spearman[a]"].value
    assert value is not None and shares is not None
    pseudo = np.array([30 * value - 29 * each["spearman"] for each in left])
    np.testing.assert_allclose(shares, pseudo - pseudo.mean() + value, rtol=1e-9)


def test_shares_of_what_is_unknown_or_undefined_are_none() -> None:
    right, said = numbers(20)
    assert regression_row_values(right, said, "accuracy", ["value"]) is None
    assert regression_row_values(right, said, "rmse[other]", ["value"]) is None
    assert regression_row_values(right, np.zeros_like(said), "spearman", ["value"]) is None


def test_a_thousand_samples_of_fifteen_hundred_rows_take_little_time() -> None:
    right, said = numbers(1500)
    began = time.process_time()
    found = regression_scores(right, said, ["value"], "spearman", 1000)
    regression_row_values(right, said, "spearman", ["value"])
    assert time.process_time() - began < 4
    assert not math.isnan(found["spearman"].value or math.nan)
