"""Regression: numbers that can be learned, their scale, losses, scores and answers in units."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from peftkit.config.recipe import Recipe
from peftkit.data.validation import Role
from peftkit.errors import DataError, RecipeError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.tasks.base import EvalSplit, Predictions, Task
from peftkit.tasks.regression import Regression
from support.data_files import load, own_cache, write

__all__ = ["own_cache"]
TASK = Regression()


class Rows(dict[str, list[Any]]):
    """A data set's length is its rows'."""

    def __len__(self) -> int:
        return len(next(iter(self.values())))


def splits(task: Regression = TASK, **columns: list[list[Any]]) -> Any:
    """Splits train, validation and test of the columns' values."""
    made = []
    for place, split in enumerate(("train", "validation", "test")):
        values = {name: lists[place] for name, lists in columns.items()}
        size = len(next(iter(values.values())))
        made.append(Rows(values, row=[f"{split}:{i}" for i in range(size)]))
    return SimpleNamespace(**dict(zip(("train", "validation", "test"), made, strict=True)))


def encode(task: Regression, texts: list[str], **columns: list[Any]) -> dict[str, list[Any]]:
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    return task.encode({"text": texts, **columns}, tokenizer, task.placeholder_names, 32)


def test_texts_of_numbers_are_numbers_and_all_else_is_told_with_counts() -> None:
    assert TASK.label_names(splits(label=[["3.5", " 1 ", "2e1"], [1], [2.0]])) == ("value",)
    bad = ["n/a", "3,5", "1_000", None, float("inf"), True, "2"]
    with pytest.raises(DataError) as caught:
        TASK.label_names(splits(label=[["1", "2", "x"], bad, [1.0]]))
    said = str(caught.value)
    assert "train, column of 'label': 1 row is no finite number ('x' in train:2)" in said
    assert "validation, column of 'label': 6 rows are no finite number ('n/a' in valid" in said
    assert "and 3 more) - write numbers with a point" in said


@pytest.mark.parametrize("value", [3.0, 1e300])
def test_a_target_that_does_not_vary_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"all 4 rows are .* there is nothing to learn"):
        TASK.label_names(splits(label=[[value] * 4, [1.0], [2.0]]))


def test_targets_too_large_to_compute_with_are_refused() -> None:
    with pytest.raises(DataError, match=r"up to 1e\+308, too large to compute with"):
        TASK.label_names(splits(label=[[1e308, -1e308], [1.0], [2.0]]))


def test_labels_are_deviations_and_answers_are_in_units_again() -> None:
    given = splits(label=[["1", "2", "6"], [1], [2]])
    task = TASK.with_fitted_state(TASK.fit_on_train(given))
    assert task.fitted_state == {"mean": [3.0], "deviation": [pytest.approx(np.std([1, 2, 6]))]}
    encoded = encode(task, ["the dog"] * 3, label=["1", "2", "6"])
    labels = np.array(encoded["labels"])
    assert labels.mean() == pytest.approx(0) and labels.std() == pytest.approx(1)
    said = task.answers(
        Predictions([], list(labels), None),
        EvalSplit({}, {}, ["value"], fitted_state=task.fitted_state),
    )
    assert said == [{"value": 1.0}, {"value": 2.0}, {"value": 6.0}]
    assert np.isnan(encode(task, ["the dog"])["labels"]).all()
    assert task.fitted_state != TASK.fitted_state and task == task.with_fitted_state(
        task.fitted_state
    )


def test_the_loss_is_the_sum_over_known_targets() -> None:
    said = torch.tensor([[0.5, 2.0], [1.0, -3.0]], requires_grad=True)
    right = torch.tensor([[0.0, float("nan")], [1.5, 0.0]])
    assert TASK.loss(said, right, 0.0).item() == pytest.approx(0.25 + 0.25 + 9.0)
    TASK.loss(said, right, 0.0).backward()
    assert said.grad is not None and said.grad.isfinite().all()
    huber = Regression(loss_kind="huber").loss(said, right, 0.0).item()
    assert huber == pytest.approx(0.125 + 0.125 + 2.5)
    assert TASK.known(right) == 3
    assert TASK.loss(said.bfloat16(), right, 0.0).dtype == torch.float32


def test_scores_are_those_of_numbers_in_units_beside_the_mean_of_train() -> None:
    chance = np.random.default_rng(0)
    right, said = chance.normal(size=(2, 40, 1)) * [[[7.0]]] + 20
    tuned = {"mean": [20.0], "deviation": [7.0]}
    outputs = [row.astype(np.float32) for row in (said - 20) / 7]
    given = EvalSplit({}, {}, ["value"], train={}, resamples=50, fitted_state=tuned)
    found = TASK.score(Predictions(((right - 20) / 7).tolist(), outputs, None), given)
    assert next(iter(found.scores)) == "spearman"
    assert found.scores["spearman"].value == float(spearmanr(right, said).statistic)
    assert found.scores["mae"].value == pytest.approx(float(abs(right - said).mean()), rel=1e-5)
    assert found.baseline["spearman"].value is None
    rmse = float(np.sqrt(((right - 20) ** 2).mean()))
    assert found.baseline["rmse"].value == pytest.approx(rmse)
    assert found.baselines == {"train's mean": found.baseline}


def test_lines_of_predictions_give_the_score_back() -> None:
    chance = np.random.default_rng(1)
    labels = chance.normal(size=(30, 2))
    outputs = [row.astype(np.float32) for row in labels + chance.normal(size=(30, 2))]
    tuned = {"mean": [0.1, -5.0], "deviation": [1e-3, 40.0]}
    task = Regression(targets=["a", "b"])
    given = EvalSplit({}, {}, ["a", "b"], resamples=0, fitted_state=tuned)
    predictions = Predictions(labels.tolist(), outputs, None)
    scores = task.score(predictions, given).scores
    lines = list(task.prediction_lines(predictions, given))
    columns = {key: [line[key] for line in lines] for key in task.lines}
    for metric in ("spearman", "pearson[b]", "mae", "rmse[a]", "r2"):
        shares = task.row_values(metric, columns, ["a", "b"])
        assert shares is not None and shares.mean() == pytest.approx(scores[metric].value, abs=1e-9)


def test_several_targets_are_roles_of_their_own() -> None:
    task = Task.parse({"kind": "regression", "targets": ["price", "age"]}, "task")
    number = Role(needed=True, cell="number")
    assert task.roles == {"text": True, "text_pair": False, "price": number, "age": number}
    assert task.placeholder_names == ("price", "age")
    assert Task.parse("regression", "task").roles["label"] == number
    for wrong, said in (
        (["text"], "'text' is a role of the task"),
        (["a", "a"], "'a' is named twice"),
        ([], "names no column"),
    ):
        with pytest.raises(RecipeError, match=said):
            Task.parse({"kind": "regression", "targets": wrong}, "task")


def test_numbers_come_from_files_of_every_kind(tmp_path: Path) -> None:
    values = [1, 2.5, 3, 0.5, 4, 5, 2, 1.5, 3.5, 4.5]
    rows = [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]
    for suffix in (".csv", ".jsonl", ".parquet"):
        made = [{**row, "label": float(row["label"])} for row in rows] if suffix[1] == "p" else rows
        found = load(write(tmp_path / f"a{suffix}", made), TASK.roles)
        assert TASK.label_names(found) == ("value",)
        every = [*found.train["label"], *found.validation["label"], *found.test["label"]]
        assert sorted(map(float, every)) == sorted(values)


def test_a_word_among_numbers_is_told_as_such(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": 0.5 * i} for i in range(10)]
    rows[4]["label"] = "n/a"  # type: ignore[call-overload]
    found = load(write(tmp_path / "train.jsonl", rows), TASK.roles, validation=0, test=0)
    with pytest.raises(DataError, match=r"1 row is no finite number \('n/a' in train.jsonl:4\)"):
        TASK.label_names(found)


def test_the_digest_knows_the_task_and_not_what_a_run_learned() -> None:
    recipe = Recipe.load("lora_tiny", "task=regression")
    fitted = recipe.with_fitted_state({"mean": [1.0], "deviation": [2.0]})
    assert fitted.settings() == recipe.settings()
    assert recipe.task.fitted_state == {} and fitted.task.fitted_state["mean"] == [1.0]
