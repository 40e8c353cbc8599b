"""Predicting from any cell: rows to predict are read as the rows that a run learned from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from peftkit.errors import DataError
from peftkit.inference.files import checked_rows
from peftkit.inference.predictor import Inputs, columns_of, inputs_from
from support.toy_models import toy


def inputs_for(task: str, read: list[str] | None = None) -> Inputs:
    return inputs_from(toy("tiny-llama", f"task={task}"), read)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (3, "3"), (2.5, "2.5"), (True, "true"), (np.int64(3), "3"), (np.float32(0.1), "0.1"),
        (np.bool_(False), "false"), (np.str_("a"), "a"), (b"na\xc3\xafve", "naïve"),
    ],
)  # fmt: skip
def test_a_scalar_of_any_kind_is_the_text_that_it_says(given: Any, shown: str) -> None:
    inputs = inputs_for("text_classification")
    assert columns_of([given, {"text": given}], 1, inputs) == {"text": [shown, shown]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": ["a", "b"]}, "text 2: text is a list - join its parts"),
        ({"text": {"a": 1}}, "text 2: text is an object"),
        ({"text": b"\xff"}, r"text 2: text is bytes that are not UTF-8 \(byte 0xff\)"),
        ("half \ud800", r"text 2: text has half a character \(.ud800\)"),
        ({"text": None}, "text 2 is empty"),
        ({"text": pandas.NA}, "text 2 is empty"),
        ({"text": float("nan")}, "text 2 is empty"),
        (None, "text 2 is empty"),
        ({"text": {1, 2}}, "text 2: text is a set - give text, numbers, lists or mappings"),
    ],
)
def test_what_is_no_text_is_refused_by_its_number(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        columns_of(["fine", given], 1, inputs_for("text_classification"))


def test_words_and_conversations_are_read_as_in_files() -> None:
    tagging = inputs_for("token_classification")
    rows: list[Any] = [
        {"tokens": ["a", 1848, 2.5]},
        {"tokens": '["a", "b"]'},
        {"tokens": "a plain text"},
    ]
    shown = [["a", "1848", "2.5"], ["a", "b"], "a plain text"]
    assert columns_of(rows, 1, tagging) == {"tokens": shown}
    assert columns_of([{"tokens": np.array(["a", "b"])}], 1, tagging) == {"tokens": [["a", "b"]]}
    with pytest.raises(DataError, match="text 1: tokens item 2 is null - give it"):
        columns_of([{"tokens": ["a", None]}], 1, tagging)
    chat = inputs_for("instruction_tuning", ["messages"])
    talk = [{"role": "user", "content": "hi"}]
    spoken = [{"role": "user", "content": "7"}]
    rows = [
        {"messages": each}
        for each in (talk, json.dumps(talk), str(talk), [{**talk[0], "content": 7}])
    ]
    assert columns_of(rows, 1, chat) == {"messages": [talk, talk, talk, spoken]}
    with pytest.raises(DataError, match="text 1: messages is text, not a conversation"):
        columns_of([{"messages": "hi"}], 1, chat)


def test_what_a_conversation_does_without_may_be_anything() -> None:
    chat = inputs_for("instruction_tuning", ["messages", "instruction"])
    talk = [{"role": "user", "content": "hi"}]
    row = {"messages": talk, "completion": [], "input": {"odd": 1}}
    assert columns_of([row], 1, chat) == {"messages": [talk]}
    with pytest.raises(DataError, match="text 1: input is an object"):
        columns_of([{"instruction": "hi", "input": {"odd": 1}}], 1, chat)


def test_every_cell_of_a_file_that_cannot_be_read_is_named_before_a_model_is_loaded(
    tmp_path: Path,
) -> None:
    rows: list[Any] = ["a goal", 3, ["a"], "half \ud800", {"a": 1}, ""]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": each, "note": [1]}) + "\n" for each in rows))
    with pytest.raises(DataError) as caught:
        checked_rows(source, inputs_for("text_classification"))
    said = str(caught.value)
    assert "rows.jsonl, column 'text': is a list in 1 row (line 3)" in said
    assert "half a character (\\ud800) in 1 row (line 4)" in said
    assert "is an object in 1 row (line 5)" in said and "line 6" not in said
