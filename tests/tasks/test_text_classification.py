"""Classification: labels that can be learned, texts as token ids, losses and scores."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from peftkit.errors import DataError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.tasks.base import Task
from peftkit.tasks.text_classification import TextClassification
from support.toy_models import NAMES

TASK = TextClassification()


def splits(names: tuple[str, ...] | None = None, **labels: list[str]) -> Any:
    """Splits that have labels and no more."""
    given = {"train": [], "validation": [], "test": [], **labels}
    return SimpleNamespace(**{s: {"label": column} for s, column in given.items()}, names=names)


class Rows(dict[str, list[str]]):
    """A data set's length is its rows'."""

    def __len__(self) -> int:
        return len(self["label"])


def label_names(names: tuple[str, ...] | None = None, **labels: list[str]) -> tuple[str, ...]:
    given = splits(names, **labels)
    for split in ("train", "validation", "test"):
        setattr(given, split, Rows(getattr(given, split)))
    return TASK.label_names(given)


def encode(texts: list[str], max_length: int = 32, **columns: list[Any]) -> dict[str, list[Any]]:
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    return TASK.encode({"text": texts, **columns}, tokenizer, NAMES, max_length)


def test_numbers_are_ordered_as_numbers_and_words_by_the_alphabet() -> None:
    assert label_names(train=["10", "9", "1"]) == ("1", "9", "10")
    assert label_names(train=["pos", "neg"], test=["neg"]) == ("neg", "pos")
    assert label_names(("good", "bad"), train=["bad", "good"]) == ("good", "bad")


def test_one_class_only_cannot_be_learned() -> None:
    with pytest.raises(DataError, match="all 3 rows have the label 'neg' - two or more are needed"):
        label_names(train=["neg", "neg", "neg"])


def test_labels_unseen_in_train_are_all_named_at_once() -> None:
    with pytest.raises(DataError) as caught:
        label_names(train=["a", "b"], validation=["c"], test=["d", "d", "a"])
    said = str(caught.value)
    assert "validation, column of 'label': 1 rows have the label 'c'" in said
    assert "test, column of 'label': 2 rows have the label 'd', which is not one of a, b" in said
    assert "cannot be learned" in said


def test_a_label_without_a_name_says_where_to_name_it() -> None:
    with pytest.raises(DataError, match=r"'maybe', which is not one of no, yes .* in data.labels"):
        label_names(("no", "yes"), train=["no", "yes", "maybe"])


def test_only_texts_that_are_too_long_are_cut() -> None:
    found = encode(["the dog", "the dog was found near a horse"], max_length=6, label=["food", "?"])
    assert [len(ids) for ids in found["input_ids"]] == [4, 6]
    assert found["truncated"] == [False, True]
    assert found["labels"] == [1, -1]
    whole = encode(["the dog was found near a horse"])
    assert found["input_ids"][1] == [*whole["input_ids"][0][:5], whole["input_ids"][0][-1]]
    assert [len(ids) for ids in found["token_type_ids"]] == [4, 6]


def test_cutting_is_the_tokenizers_own() -> None:
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    texts, pairs = ["the dog", "rain storm cloud fog rain"], ["a horse was near", "the soup"]
    found = encode(texts, 7, text_pair=pairs)
    expected = tokenizer(texts, pairs, truncation=True, max_length=7)
    assert found["input_ids"] == expected["input_ids"]
    assert found["token_type_ids"] == expected["token_type_ids"]
    assert found["truncated"] == [True, True]
    assert found["labels"] == [-1, -1]


def test_the_loss_leaves_unknown_labels_out() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    labels = torch.tensor([0, 1, -1])
    known = torch.nn.functional.cross_entropy(logits[:2], labels[:2], reduction="sum")
    assert torch.equal(TASK.loss(logits, labels, 0.0), known)
    assert TASK.loss(logits, labels, 0.1) > known
    assert TASK.loss(logits.bfloat16(), labels, 0.0).dtype == torch.float32


def test_probabilities_add_up_to_one() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).bfloat16()
    found = np.stack(TASK.outputs(logits, torch.tensor([0, 1]), [1, 1]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)


def test_the_task_is_found_by_its_name() -> None:
    assert Task.parse({"kind": "text_classification", "metric": "mcc"}, "task").headline == "mcc"


def weighted(weights: Any, names: tuple[str, ...] | None = None, **labels: list[str]) -> Any:
    """The task with what it learned of the splits."""
    given = splits(names, **labels)
    for split in ("train", "validation", "test"):
        setattr(given, split, Rows(getattr(given, split)))
    task = Task.parse({"kind": "text_classification", "class_weights": weights}, "task")
    task.label_names(given)
    return task.with_fitted_state(task.fit_on_train(given))


def test_balanced_weights_let_every_class_count_the_same() -> None:
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    task = weighted("balanced", train=labels)
    weights = task.fitted_state["class_weights"]
    assert [6 * weights[0], 3 * weights[1], weights[2]] == pytest.approx([10 / 3] * 3)
    assert task.fitted_state_notes(task.fitted_state) == (
        "losses are weighted by class, in the order of their ids: 0.5556, 1.111, 3.333",
    )
    assert weighted("none", train=labels).fitted_state == {} == TASK.fitted_state
    assert TASK.fitted_state_notes({}) == ()


def test_the_weighted_loss_over_all_of_train_is_the_librarys_weighted_mean() -> None:
    chance = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    logits = torch.randn(10, 3, generator=chance)
    given = {"a": 1.0, "b": 2.0, "c": 7.0}
    task = weighted(given, train=["a"] * 6 + ["b"] * 3 + ["c"])
    expected = torch.nn.functional.cross_entropy(
        logits, labels, weight=torch.tensor([1.0, 2.0, 7.0]), reduction="mean"
    )
    assert (task.loss(logits, labels, 0.0) / 10).item() == pytest.approx(expected.item())
    parts = sum(task.loss(logits[i : i + 5], labels[i : i + 5], 0.0).item() for i in (0, 5))
    assert parts == pytest.approx(task.loss(logits, labels, 0.0).item())
    unknown = torch.cat([labels, torch.tensor([-1])])
    more = torch.cat([logits, torch.ones(1, 3)])
    assert torch.equal(task.loss(more, unknown, 0.0), task.loss(logits, labels, 0.0))


def test_weights_name_every_class() -> None:
    with pytest.raises(DataError, match=r"should weigh a, b \(got a, x\) - give each of them"):
        weighted({"a": 1.0, "x": 2.0}, train=["a", "b"])
