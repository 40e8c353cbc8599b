"""Encoding: done once, cached by what it depends on; a length that cuts every text is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.preprocessing.tokenization import encode
from peftkit.tasks.text_classification import TextClassification
from support.toy_models import NAMES, toy


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many texts each call of the task's `encode` got; the cache is empty at first."""
    counted: list[int] = []
    real = TextClassification.encode

    def counting(self: TextClassification, given: Any, *rest: Any) -> Any:
        counted.append(len(given["text"]))
        return real(self, given, *rest)

    monkeypatch.setattr(TextClassification, "encode", counting)
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))
    yield counted


def encoded(recipe: Recipe) -> dict[str, Any]:
    source = find_model(recipe.model)
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    return encode(recipe, splits, load_tokenizer(source.location), source, NAMES)


def test_a_second_run_tokenizes_nothing(calls: list[int]) -> None:
    recipe = toy("tiny-bert")
    first = encoded(recipe)
    assert sum(calls) == 80 == sum(map(len, first.values()))
    again = encoded(recipe.but(training={"seed": 3, "epochs": 1}, strategy="full", name="other"))
    assert sum(calls) == 80
    for split, rows in first.items():
        assert rows[:] == again[split][:]
    assert first["train"].column_names == again["train"].column_names


@pytest.mark.parametrize(
    "change", ["data.max_length=24", "data.rows=88", "model=tiny-llama", "data.seed=1"]
)
def test_what_changes_the_tokens_is_tokenized_anew(calls: list[int], change: str) -> None:
    encoded(toy("tiny-bert"))
    before = sum(calls)
    encoded(toy("tiny-bert", change))
    assert sum(calls) > before


def test_an_example_has_what_batches_are_made_of(calls: list[int]) -> None:
    example = encoded(toy("tiny-bert"))["test"][0]
    assert set(example) == {"input_ids", "token_type_ids", "labels", "truncated", "length"}
    assert example["length"] == len(example["input_ids"]) == len(example["token_type_ids"])
    assert example["labels"] in (0, 1) and example["truncated"] is False


def test_a_length_that_cuts_every_text_is_refused_unless_it_is_meant(calls: list[int]) -> None:
    with pytest.raises(DataError) as caught:
        encoded(toy("tiny-bert", "data.max_length=5"))
    assert "data.max_length: 5 tokens cut every one of" in str(caught.value)
    assert "data.truncation=all" in str(caught.value)
    meant = encoded(toy("tiny-bert", "data.max_length=5", "data.truncation=all"))
    assert all(meant["train"]["truncated"]) and set(meant["train"]["length"]) == {5}


def test_a_split_without_rows_is_encoded_to_nothing(calls: list[int], tmp_path: Path) -> None:
    recipe = toy("tiny-bert")
    source = find_model(recipe.model)
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    object.__setattr__(splits, "test", splits.test.select([]))
    found = encode(recipe, splits, load_tokenizer(source.location), source, NAMES)
    assert len(found["test"]) == 0
    assert list(found["test"]["length"]) == list(found["test"]["labels"]) == []
