"""Multi-label: sets of labels from every kind of file, thresholds, losses and scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
)

from peftkit.errors import DataError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.metrics.bootstrap import row_weights
from peftkit.metrics.multilabel import (
    best_threshold,
    mean_precision,
    multilabel_counts,
    multilabel_points,
    multilabel_row_values,
    multilabel_scores,
    multilabel_totals,
    ranking_precision,
)
from peftkit.tasks.base import EvalSplit, Predictions
from peftkit.tasks.multilabel import Multilabel
from support.data_files import load, own_cache, write

__all__ = ["own_cache"]
NAMES = ["film", "music", "sport"]
SETS = [["film"], ["music", "sport"], [], ["sport"], ["film", "sport"], ["music"]] * 4


def made(rows: int, ties: bool = False, labels: int = 3) -> tuple[Any, Any, Any]:
    """Right sets, sets that are said, and probabilities."""
    chance = np.random.default_rng(rows)
    right = chance.random((rows, labels)) < 0.4
    sure = np.clip(0.3 * right + 0.7 * chance.random(right.shape), 0, 1)
    sure = sure.round(1) if ties else sure
    return right, sure >= 0.5, sure


def by_library(right: Any, said: Any, sure: Any) -> dict[str, float]:
    there = right.any(axis=0)
    return {
        "micro_f1": f1_score(right, said, average="micro", zero_division=np.nan),
        "macro_f1": f1_score(right, said, average="macro", zero_division=np.nan),
        "map": average_precision_score(right[:, there], sure[:, there], average="macro"),
        "lrap": label_ranking_average_precision_score(right, sure),
        "exact_match": accuracy_score(right, said),
    }


@pytest.mark.parametrize("ties", [False, True])
def test_points_and_bootstrap_samples_are_the_librarys_on_the_rows_written_out(ties: bool) -> None:
    right, said, sure = made(40, ties)
    assert multilabel_points(right, said, sure, NAMES) == pytest.approx(
        by_library(right, said, sure)
        | {f"f1[{n}]": f1_score(right[:, i], said[:, i]) for i, n in enumerate(NAMES)}
    )
    weights = row_weights(np.random.default_rng(1), 10, 40)
    found = multilabel_totals(weights @ multilabel_counts(right, said, sure), NAMES)
    found["map"] = mean_precision(weights, right, sure)
    for sample, times in enumerate(weights.astype(int)):
        expected = by_library(*(np.repeat(each, times, axis=0) for each in (right, said, sure)))
        for name, value in expected.items():
            assert found[name][sample] == pytest.approx(value), name


def test_rows_without_labels_or_with_all_rank_perfectly() -> None:
    right = np.array([[False, False, False], [True, True, True], [True, False, True]])
    sure = np.array([[0.1, 0.2, 0.3], [0.5, 0.5, 0.1], [0.3, 0.3, 0.1]])
    each = [label_ranking_average_precision_score(right[i : i + 1], sure[i : i + 1]) for i in (2,)]
    np.testing.assert_allclose(ranking_precision(right, sure), [1, 1, *each])


def test_labels_that_nobody_has_or_says_leave_means_alone() -> None:
    right, said, sure = made(30)
    right[:, 1] = said[:, 1] = False
    found = multilabel_scores(right, said, sure, NAMES, 50)
    assert found["f1[music]"].value is None
    others = np.mean([f1_score(right[:, i], said[:, i]) for i in (0, 2)])
    assert found["macro_f1"].value == pytest.approx(others)
    areas = [average_precision_score(right[:, i], sure[:, i]) for i in (0, 2)]
    assert found["map"].value == pytest.approx(np.mean(areas))


def test_shares_of_rows_have_the_score_as_their_mean() -> None:
    right, said, sure = made(25)
    points = multilabel_points(right, said, sure, NAMES)
    for metric in ("micro_f1", "macro_f1", "map", "lrap", "exact_match"):
        shares = multilabel_row_values(metric, right, said, sure, NAMES)
        assert shares is not None and shares.mean() == pytest.approx(points[metric]), metric
    assert multilabel_row_values("accuracy", right, said, sure, NAMES) is None


def test_the_best_threshold_has_the_best_f1_of_all() -> None:
    for seed in range(5):
        chance = np.random.default_rng(seed)
        right, sure = chance.random(60) < 0.3, chance.random(60).round(2)
        sure[right] += 0.2
        limit = best_threshold(right, sure)
        best = max(f1_score(right, sure >= each) for each in np.unique(sure))
        assert f1_score(right, sure >= limit) == best
    assert best_threshold(np.zeros(5, dtype=bool), np.linspace(0, 1, 5)) == 0.5


def rows_of(kind: str) -> tuple[str, list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """File ending, rows, task settings and data settings of one way to say sets."""
    texts = [f"text {i}" for i in range(len(SETS))]
    hot = [[int(name in each) for name in NAMES] for each in SETS]
    ways: dict[str, Any] = {
        "lists": (".jsonl", [{"label": each} for each in SETS], {}, {}),
        "parquet": (".parquet", [{"label": each} for each in SETS], {}, {}),
        "text": (".csv", [{"label": "; ".join(each)} for each in SETS], {"separator": ";"}, {}),
        "hot": (".jsonl", [{"label": each} for each in hot], {}, {"labels": NAMES}),
        "columns": (
            ".csv",
            [dict(zip(NAMES, each, strict=True)) for each in hot],
            {"columns": NAMES},
            {},
        ),
    }
    ending, rows, task, data = ways[kind]
    return ending, [{"text": t, **row} for t, row in zip(texts, rows, strict=True)], task, data


@pytest.mark.parametrize("kind", ["lists", "parquet", "text", "hot", "columns"])
def test_every_way_to_say_sets_of_labels_says_the_same(kind: str, tmp_path: Path) -> None:
    ending, rows, settings, data = rows_of(kind)
    task = Multilabel(**settings)
    path = write(tmp_path / f"train{ending}", rows)
    splits = load(path, task.roles, validation=0, test=0, **data)
    names = task.label_names(splits)
    assert names == tuple(NAMES)
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    encoded = task.encode(splits.train[:], tokenizer, names, 32)
    assert encoded["labels"] == [[int(name in each) for name in NAMES] for each in SETS]
    without = task.encode({"text": ["a"]}, tokenizer, names, 32)
    assert without["labels"] == [[-100] * 3]


def refused(tmp_path: Path, values: list[Any], task: Multilabel, **data: Any) -> str:
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(values)]
    with pytest.raises(DataError) as caught:
        task.label_names(
            load(write(tmp_path / "a.jsonl", rows), task.roles, validation=0, test=0, **data)
        )
    return str(caught.value)


def test_what_cannot_be_read_as_sets_is_told(tmp_path: Path) -> None:
    plain = Multilabel()
    said = refused(tmp_path, ["a|b", "b", "a"], plain)
    assert "holds text, not lists - say what parts its labels: task.separator='|'" in said
    assert "two or more are needed" in refused(tmp_path, [["a"], ["a"], []], plain)
    said = refused(tmp_path, [["a"], ["b", "c"], ["c"]], plain, labels=["a", "b"])
    assert "2 rows: 'c' is not among a, b - fix the rows, or name all labels" in said
    said = refused(tmp_path, [[0, 1, 1], [1, 0, 0]], plain)
    assert "a label is there twice - remove it (lists of 0 and 1 need the labels' names" in said
    said = refused(tmp_path, [[], [], []], plain, labels=["a", "b"])
    assert "no row has any label - there is nothing to learn" in said
    assert "column 'label': is empty in 1 row (line 2)" in refused(tmp_path, [["a"], None], plain)


def test_columns_hold_nothing_but_zeros_and_ones(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "a": i % 2, "b": "maybe" if i == 3 else "0"} for i in range(6)]
    path = write(tmp_path / "a.csv", rows)
    task = Multilabel(columns=["a", "b"])
    with pytest.raises(DataError, match="1 row: 'maybe' is neither 0 nor 1 - write those"):
        task.label_names(load(path, task.roles, validation=0, test=0))


def test_the_loss_is_the_sum_over_labels_that_are_known() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    labels = torch.tensor([[1, 0], [0, -100]])
    right = torch.tensor([1.0, 0.0, 0.0])
    flat = logits.flatten()[:3]
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(flat, right, reduction="sum")
    assert Multilabel().loss(logits, labels, 0.0).item() == pytest.approx(entropy.item())
    assert Multilabel().known(labels) == 3
    assert Multilabel().loss(logits.bfloat16(), labels, 0.1).dtype == torch.float32


class Train(dict[str, list[Any]]):
    """A train split as a baseline reads it."""


def test_tuned_thresholds_go_with_the_answers_the_scores_and_their_lines() -> None:
    task, (right, _, sure) = Multilabel(), made(60)
    outputs = list((sure / 4).astype(np.float32))  # nothing reaches 0.5
    predictions = Predictions(right.astype(int).tolist(), outputs, None)
    train = Train(label=[["film"], ["film", "sport"], []])
    given = EvalSplit({}, {}, NAMES, train=train, resamples=20)
    untuned = task.score(predictions, given)
    assert (
        untuned.scores["micro_f1"].value == 0 and not task.answers(predictions, given)[0]["labels"]
    )
    tuned = task.fit_on_validation(predictions, given)
    assert len(tuned["thresholds"]) == 3 and max(tuned["thresholds"]) < 0.25
    assert Multilabel(threshold=0.4).fit_on_validation(predictions, given) == {}
    given = EvalSplit({}, {}, NAMES, train=train, resamples=20, fitted_state=tuned)
    scored = task.score(predictions, given)
    assert next(iter(scored.scores)) == "micro_f1" and scored.scores["micro_f1"].value > 0.5  # type: ignore[operator]
    lines = list(task.prediction_lines(predictions, given))
    columns = {key: [line[key] for line in lines] for key in task.lines}
    for metric in ("micro_f1", "map", "lrap", "exact_match", "f1[sport]"):
        shares = task.row_values(metric, columns, NAMES)
        assert shares is not None
        assert shares.mean() == pytest.approx(scored.scores[metric].value), metric
    none, shares_of_train = scored.baselines["no label"], scored.baselines["shares in train"]
    assert none["micro_f1"].value == 0 and scored.baseline == none
    assert shares_of_train["micro_f1"].value == f1_score(  # film has 2 of 3 rows: always said
        right, np.tile([True, False, False], (60, 1)), average="micro"
    )
    assert "fitted on the validation split" in task.fitted_state_notes(tuned)[0]
    assert "0.5: there is no validation split" in task.fitted_state_notes({})[0]
