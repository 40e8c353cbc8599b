"""A registered metric with a function is scored with an interval, and its rows are compared."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, max_error

from peftkit.errors import DataError, RecipeError
from peftkit.metrics.classification import classification_scores
from peftkit.metrics.functions import function_row_values, function_score
from peftkit.metrics.registry import METRICS, Metric, find_metric, gain, register
from peftkit.metrics.regression import regression_row_values, regression_scores
from peftkit.reporting.analysis.jackknife import row_scores
from peftkit.reporting.analysis.scales import Scale
from peftkit.tasks.regression import Regression
from peftkit.tasks.text_classification import TextClassification

KAPPA = Metric("kappa", "agreement beyond chance", range=(-1, 1), function=cohen_kappa_score)
LARGEST = Metric("largest", "largest error", False, (0, np.inf), function=max_error)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for metric in (KAPPA, LARGEST):
        register(metric)
    yield
    for metric in (KAPPA, LARGEST):
        METRICS.pop(metric.name)


def test_a_task_takes_a_registered_metric_and_refuses_others() -> None:
    assert TextClassification(metric="kappa").headline == "kappa"
    assert TextClassification(metric="evaluate:mcc").headline == "evaluate:mcc"
    assert "kappa" in str(TextClassification.model_json_schema()["properties"]["metric"])
    for name in ("kapa", "rmse", "evaluate:"):
        with pytest.raises(ValueError, match="no metric of this task is called"):
            TextClassification(metric=name)
    with pytest.raises(RecipeError, match="two metrics are called 'kappa'"):
        register(Metric("kappa", "another"))


def test_a_function_is_the_headline_with_interval_and_majority() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(3, size=90), rng.dirichlet([1, 1, 1], 90)
    found = classification_scores(
        labels, probabilities, "abc", headline="kappa", resamples=200, majority_class=0
    )
    name, score = next(iter(found.scores.items()))
    assert name == "kappa"
    assert score.value == cohen_kappa_score(labels, probabilities.argmax(axis=1))
    assert score.low is not None and score.low < score.value < (score.high or 0)
    assert found.majority["kappa"].value == 0
    plain = classification_scores(labels, probabilities, "abc", resamples=200)
    assert all(found.scores[name] == known for name, known in plain.scores.items())


@pytest.mark.parametrize("name", ["kappa", "largest"])
def test_row_values_are_the_jackknifes_and_have_the_score_as_their_mean(name: str) -> None:
    labels, predicted = np.random.default_rng(1).integers(3, size=(2, 60))
    metric = find_metric(name)
    values = function_row_values(metric, labels, predicted)
    assert values is not None and metric.function is not None
    assert values.mean() == pytest.approx(metric.function(labels, predicted))
    left = [metric.function(np.delete(labels, i), np.delete(predicted, i)) for i in range(60)]
    assert np.diff(values) == pytest.approx(-59 * np.diff(np.array(left, dtype=float)))
    if name == "kappa":
        found = row_scores("kappa", labels, predicted, None, "abc")
        assert found is not None and (found == values).all()


def test_a_function_of_several_targets_is_their_mean() -> None:
    right, predicted = np.random.default_rng(2).normal(size=(2, 30, 2))
    found = regression_scores(right, predicted, ("a", "b"), "largest", 50)
    errors = abs(right - predicted).max(axis=0)
    assert next(iter(found)) == "largest" and found["largest"].value == errors.mean()
    values = regression_row_values(right, predicted, "largest", ("a", "b"))
    assert values is not None and values.mean() == pytest.approx(errors.mean())
    assert Regression(metric="largest").headline == "largest"


def test_a_row_says_how_its_values_are_read() -> None:
    assert gain("largest", 2.0) == -2.0 and Scale("largest").unit == " largest"
    assert gain("kappa", 2.0) == 2.0 and Scale("kappa").unit == " points"
    assert find_metric("rmse[price]").unit == "target units" and METRICS["r2"].best == 1.0


def test_a_function_that_fails_is_an_error_of_ours() -> None:
    def broken(y_true: Any, y_pred: Any) -> float:
        raise ZeroDivisionError("division by zero")

    rows = np.array([0, 1])
    with pytest.raises(DataError, match=r"metric 'broken': ZeroDivisionError.* - fix its function"):
        function_score(Metric("broken", "", function=broken), rows, rows, 10)
    nothing = Metric("nothing", "", function=lambda y_true, y_pred: None)
    assert function_score(nothing, rows, rows, 10).value is None
    assert function_row_values(nothing, rows, rows) is None
