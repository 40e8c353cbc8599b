"""The scores are scikit-learn's, the intervals scipy's, and what is undefined is None."""

import math
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from peftkit.errors import DataError, RecipeError, RunError
from peftkit.metrics.classification import ClassificationScores, classification_scores
from peftkit.metrics.registry import METRICS, Score

Arrays = tuple[NDArray[np.int64], NDArray[np.float64]]


def toy(rows: int, classes: int, seed: int = 0, decimals: int = 9) -> Arrays:
    """Labels and probabilities that know something of them; few decimals make ties."""
    rng = np.random.default_rng(seed)
    label_ids = rng.integers(classes, size=rows)
    weights = rng.random((rows, classes)) + 0.3 * np.eye(classes)[label_ids]
    return label_ids, np.round(weights / weights.sum(axis=1, keepdims=True), decimals)


def named(
    label_ids: NDArray[np.int64], probabilities: NDArray[np.float64], **options: object
) -> ClassificationScores:
    names = [f"c{i}" for i in range(probabilities.shape[1])]
    return classification_scores(label_ids, probabilities, names, **options)  # type: ignore[arg-type]


def expected(label_ids: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float]:
    """The same numbers by scikit-learn, NaN where it calls them undefined."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    every = {"labels": range(classes), "zero_division": np.nan}
    per_class = sk.precision_recall_fscore_support(label_ids, predicted, **every)
    macro = sk.precision_recall_fscore_support(label_ids, predicted, average="macro", **every)
    values = {
        "accuracy": sk.accuracy_score(label_ids, predicted),
        "f1": per_class[2][1] if classes == 2 else macro[2],
        "macro_precision": macro[0],
        "macro_recall": macro[1],
        "macro_f1": macro[2],
        "mcc": sk.matthews_corrcoef(label_ids, predicted),
        "roc_auc": np.mean(one_against_rest(label_ids, probabilities)),
    }
    if len(set(label_ids)) == 1 or len(set(predicted)) == 1:
        values["mcc"] = math.nan  # scikit-learn's 0.0 stands for 0/0 here
    for i in range(classes):
        for column, name in enumerate(("precision", "recall", "f1")):
            values[f"{name}[c{i}]"] = per_class[column][i]
    return values


def one_against_rest(
    label_ids: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> list[float]:
    ranked = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [
        sk.roc_auc_score(label_ids == i, probabilities[:, i])
        if 0 < (label_ids == i).sum() < len(label_ids)
        else math.nan
        for i in ranked
    ]


def assert_same(found: ClassificationScores, wanted: dict[str, float]) -> None:
    assert found.scores.keys() == wanted.keys()
    for name, value in wanted.items():
        got = found.scores[name].value
        assert (got is None) if math.isnan(value) else (got == pytest.approx(value, abs=1e-12)), (
            name
        )


@given(
    rows=st.integers(1, 40),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**32 - 1),
    decimals=st.sampled_from([1, 9]),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_every_value_is_scikit_learns(rows: int, classes: int, seed: int, decimals: int) -> None:
    data = toy(rows, classes, seed, decimals)
    assert_same(named(*data, resamples=0), expected(*data))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("labels", "predicted", "classes"),
    [
        ([0, 0, 1, 1], [0, 1, 1, 1], 3),  # a class that no row has and nobody predicts
        ([0, 0, 1, 1], [0, 2, 1, 1], 3),  # one that is predicted, and never right
        ([0, 2, 1, 1], [0, 0, 1, 1], 3),  # one that is never predicted
        ([0, 0, 0], [1, 1, 1], 2),  # all wrong
        ([1, 1, 1], [1, 1, 1], 2),  # all right, of one class
        ([0, 1, 2, 3, 4], [4, 4, 4, 4, 4], 5),  # one answer for everything
        ([0, 1, 2], [1, 2, 0], 3),  # every class predicted, always wrongly
        ([0] * 99 + [1], [0] * 100, 2),  # the rare class is missed
        ([0] * 99 + [1], [0] * 98 + [1, 1], 2),
        ([1], [1], 2),
        ([1], [0], 2),
    ],
)
def test_edge_cases_are_scikit_learns(
    labels: list[int], predicted: list[int], classes: int
) -> None:
    data = np.array(labels), np.eye(classes)[predicted]
    assert_same(named(*data, resamples=10), expected(*data))


def test_ties_count_half_in_roc_auc() -> None:
    constant = np.full((6, 2), 0.5)
    assert named(np.array([0, 1, 0, 1, 1, 1]), constant).scores["roc_auc"].value == 0.5


def test_undefined_is_none_and_has_no_interval() -> None:
    scores = named(np.array([0, 0, 0]), np.eye(2)[[0, 0, 0]]).scores
    undefined = Score(value=None, low=None, high=None, n=3)
    for name in ("mcc", "roc_auc", "f1", "precision[c1]", "recall[c1]", "f1[c1]"):
        assert scores[name] == undefined, name
    assert scores["macro_recall"].value == 1.0


def test_nothing_is_ever_nan() -> None:
    data = np.array([0, 0, 0, 1, 2]), np.eye(4)[[0, 0, 1, 1, 0]]
    found = named(*data, majority_class=3)
    for score in [*found.scores.values(), *found.majority.values()]:
        assert all(x is None or math.isfinite(x) for x in (score.value, score.low, score.high))


def test_one_row_has_a_value_but_no_interval() -> None:
    found = named(np.array([1]), np.array([[0.2, 0.8]])).scores["accuracy"]
    assert found == Score(value=1.0, low=None, high=None, n=1)


STATISTICS: dict[str, Callable[..., float]] = {
    "accuracy": lambda labels, p: sk.accuracy_score(labels, p.argmax(axis=1)),
    "macro_precision": lambda labels, p: sk.precision_score(
        labels, p.argmax(axis=1), average="macro"
    ),
    "macro_f1": lambda labels, p: sk.f1_score(labels, p.argmax(axis=1), average="macro"),
    "mcc": lambda labels, p: sk.matthews_corrcoef(labels, p.argmax(axis=1)),
    "roc_auc": lambda labels, p: np.mean(one_against_rest(labels, p)),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_interval_is_scipys_on_the_same_rows(name: str, classes: int) -> None:
    label_ids, probabilities = toy(200, classes, seed=5)
    resamples = 400
    wanted = stats.bootstrap(
        (np.arange(200),),
        lambda rows: STATISTICS[name](label_ids[rows], probabilities[rows]),
        n_resamples=resamples,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(1),
    )
    found = named(label_ids, probabilities, resamples=20_000).scores[name]
    # A quantile q of m draws has the standard error sqrt(q (1 - q) / m) / density; four of them.
    density = stats.norm.pdf(stats.norm.ppf(0.025)) / wanted.standard_error
    error = 4 * math.sqrt(0.025 * 0.975 / resamples) / density
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=error)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=error)
    assert error < wanted.standard_error


def test_the_interval_holds_the_value_and_narrows_with_the_rows() -> None:
    few, many = (named(*toy(rows, 2)).scores["roc_auc"] for rows in (100, 10_000))
    for score in (few, many):
        assert score.low < score.value < score.high  # type: ignore[operator]
    assert many.high - many.low < 0.2 * (few.high - few.low)  # type: ignore[operator]


def test_blocks_of_resamples_are_all_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftkit.metrics import bootstrap

    drawn = []
    weights = bootstrap.row_weights
    monkeypatch.setattr(bootstrap, "BLOCK_CELLS", 70)
    monkeypatch.setattr(
        bootstrap, "row_weights", lambda rng, size, n: drawn.append(size) or weights(rng, size, n)
    )
    named(*toy(20, 2), resamples=10)
    assert drawn == [3, 3, 3, 1]


def test_the_same_seed_gives_the_same_intervals() -> None:
    data = toy(50, 3)
    assert named(*data, seed=3) == named(*data, seed=3)
    assert named(*data, seed=3) != named(*data, seed=4)


def test_two_thousand_rows_take_about_a_second() -> None:
    data = toy(2000, 2)
    start = time.process_time()
    named(*data, majority_class=0)
    assert time.process_time() - start < 3  # 0.2 s on two quiet cores


def test_the_headline_comes_first_and_every_class_has_its_scores() -> None:
    label_ids, probabilities = toy(30, 2)
    found = classification_scores(label_ids, probabilities, ["neg", "pos"], headline="mcc")
    assert next(iter(found.scores)) == "mcc"
    assert {"precision[neg]", "recall[pos]", "f1[neg]"} <= found.scores.keys()
    assert {name for name in found.scores if "[" not in name} <= METRICS.keys()


def test_the_confusion_matrix_has_a_line_for_each_true_class() -> None:
    predicted = np.eye(3)[[0, 1, 1, 0]]
    assert named(np.array([0, 0, 1, 2]), predicted).confusion == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_the_majority_baseline_always_answers_the_class_it_is_given() -> None:
    label_ids, probabilities = toy(60, 3)
    found = named(label_ids, probabilities, majority_class=2, headline="macro_f1")
    assert next(iter(found.majority)) == "macro_f1"
    assert found.majority["accuracy"].value == pytest.approx((label_ids == 2).mean())
    assert found.majority["recall[c2]"].value == 1.0
    assert found.majority["roc_auc"].value == 0.5
    assert found.majority["mcc"].value is None
    assert named(label_ids, probabilities).majority == {}


def test_scores_survive_json() -> None:
    found = named(*toy(10, 2), majority_class=0)
    assert ClassificationScores.model_validate_json(found.model_dump_json()) == found


def test_a_headline_that_is_no_metric_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match="'acuracy' - did you mean 'accuracy'"):
        named(*toy(10, 2), headline="acuracy")


def test_rows_that_do_not_fit_are_refused_with_what_they_are() -> None:
    label_ids, probabilities = toy(10, 2)
    with pytest.raises(DataError, match="no rows"):
        named(label_ids[:0], probabilities[:0])
    with pytest.raises(DataError, match=r"should be \(9, 2\) \(got \(10, 2\)\)"):
        named(label_ids[:9], probabilities)
    with pytest.raises(DataError, match=r"label ids \[-1, 2\]"):
        named(np.array([-1, 2, 0]), probabilities[:3])
    with pytest.raises(DataError, match="same name"):
        classification_scores(label_ids, probabilities, ["a", "a"])


def test_a_diverged_model_is_not_scored() -> None:
    label_ids, probabilities = toy(10, 2)
    probabilities[3, 1] = np.nan
    with pytest.raises(RunError, match=r"row 3: .*nan.*lower training\.lr"):
        named(label_ids, probabilities)


def test_importing_metrics_imports_no_heavy_library() -> None:
    heavy = "{'numpy', 'sklearn', 'scipy', 'torch', 'evaluate'}"
    code = f"import sys, peftkit.metrics.registry; print({heavy} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
