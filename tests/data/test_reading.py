"""Reading: what a file holds is what a task is shown, or the file is refused with the place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.base import Data
from peftkit.data.splits import Splits
from peftkit.data.validation import Need, Role
from peftkit.errors import DataError
from peftkit.tasks.base import Task

TAGGED: Mapping[str, Need] = {"tokens": True, "tags": True}
LABELED: Mapping[str, Need] = {"text": True, "label": True}
CHAT: Mapping[str, Need] = {"messages": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def read(path: Path, roles: Mapping[str, Need] = LABELED, **settings: Any) -> Splits:
    """All rows of a file as the train split."""
    data = Data.parse({"kind": "files", "path": str(path), "validation": 0, "test": 0}, "data")
    data = data.model_copy(update=settings)
    return data.load(data.resolve(), roles)


def refused(path: Path, roles: Mapping[str, Need] = LABELED, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, roles, **settings)
    return str(caught.value)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_one_odd_word_among_thousands_of_rows_changes_no_other(tmp_path: Path) -> None:
    rows: list[Any] = [{"tokens": ["in", f"w{i}"], "tags": ["O", "O"]} for i in range(2600)]
    for place, word in ((1300, 1848), (1301, 2.50), (1302, True), (1303, -7)):
        rows[place] = {"tokens": [word, "in"], "tags": ["O", "O"]}
    found = read(jsonl(tmp_path / "a.jsonl", rows), TAGGED).train["tokens"][:]
    spelled = {1300: "1848", 1301: "2.5", 1302: "true", 1303: "-7"}
    for place, words in enumerate(found):
        assert words == ([spelled[place], "in"] if place in spelled else ["in", f"w{place}"])


def test_numbers_are_read_as_their_file_spells_them(tmp_path: Path) -> None:
    said = ["3", "3.0", "2.50", "1e5", "-0.0", "12345678901234567890", "0.1", "true", "false"]
    lines = [f'{{"text": {each}, "label": "x"}}' for each in said]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert list(read(tmp_path / "a.jsonl").train["text"]) == said
    import pyarrow as pa

    narrow = pa.array([0.1, 3.0], pa.float32())
    column = parquet(tmp_path / "b.parquet", {"text": narrow, "label": ["x", "y"]})
    assert list(read(column).train["text"]) == ["0.1", "3.0"]


def test_a_word_that_is_null_or_a_list_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", each], "tags": ["O", "O"]} for each in ("b", None, ["c"], {"d": 1})]
    said = refused(jsonl(tmp_path / "a.jsonl", rows), TAGGED)
    assert "a.jsonl, column 'tokens': is null in 1 row (line 2, item 2) - give it" in said
    assert "is a list in 1 row (line 3, item 2)" in said
    assert "is an object in 1 row (line 4, item 2)" in said


CALLS: list[Any] = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "3"}],
    [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}]}],
    [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]}],
    [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}],
    [{"role": "assistant", "tool_calls": [{"arguments": {"x": [1, 2.5, True, None, "null"]}}]}],
]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "python", "parquet"])
def test_conversations_arrive_as_they_are_in_the_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{'csv' if form == 'python' else form}"
    if form == "jsonl":
        jsonl(path, [{"messages": each} for each in CALLS])
    elif form == "json":
        path.write_text(json.dumps([{"messages": each} for each in CALLS], indent=1))
    elif form == "tsv":
        path.write_text("messages\n" + "".join(json.dumps(each) + "\n" for each in CALLS))
    elif form == "parquet":
        parquet(path, {"messages": [json.dumps(each) for each in CALLS]})
    else:
        import csv

        spell = str if form == "python" else json.dumps
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["messages"], *([spell(each)] for each in CALLS)])
    train = read(path, CHAT).train
    assert list(train["messages"]) == CALLS
    assert [row["messages"] for row in train.select(range(len(CALLS)))] == CALLS


def test_messages_of_parquet_have_the_types_of_their_schema(tmp_path: Path) -> None:
    import pyarrow as pa

    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    as_maps = pa.array([[[("role", "user"), ("content", "hi")]]], kind)
    found = read(parquet(tmp_path / "a.parquet", {"messages": as_maps}), CHAT).train
    assert found["messages"][:] == [[{"role": "user", "content": "hi"}]]
    numbers = [[{"role": "user", "content": 42}], [{"from": "gpt", "value": 4.5}]]
    found = read(parquet(tmp_path / "b.parquet", {"messages": numbers[:1]}), CHAT).train
    assert found["messages"][:] == [[{"role": "user", "content": "42"}]]


def test_what_is_no_conversation_is_refused_with_its_row(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"messages": each} for each in (CALLS[0], "hello", 3, {"role": "user"}, ["a"])
    ]
    said = refused(jsonl(tmp_path / "a.jsonl", rows), CHAT)
    assert "is text, not a conversation in 1 row (line 2)" in said
    assert "is not a list, not a conversation in 2 rows (line 3, line 4)" in said
    assert "is not an object in 1 row (line 5, message 1) - give {role, content}" in said


def test_a_prompt_may_be_text_in_some_rows_and_messages_in_others(tmp_path: Path) -> None:
    asked = ["hi", CALLS[0], json.dumps(CALLS[0]), "[1, 2]", '["a"]', 7]
    rows = [{"prompt": each, "completion": True} for each in asked]
    path = jsonl(tmp_path / "a.jsonl", rows)
    train = read(path, {"prompt": True, "completion": True}).train
    assert list(train["prompt"]) == ["hi", CALLS[0], CALLS[0], "[1, 2]", '["a"]', "7"]
    assert set(train["completion"]) == {"true"}


def test_a_column_that_the_format_does_without_may_hold_anything(tmp_path: Path) -> None:
    rows = [
        {"messages": CALLS[0], "input": odd, "question": "q", "note": odd}
        for odd in (1, "a", [1], {"a": 2}, None)
    ]
    path, task = jsonl(tmp_path / "a.jsonl", rows), Task.parse("instruction_tuning", "task")
    data = Data.parse({"kind": "files", "path": str(path), "test": 1, "validation": 1}, "data")
    found = data.load(data.resolve(), task.roles, task.inputs, task.used_roles)
    assert set(found.train.column_names) == {"row", "messages", "question"}
    said = "ignored, since the task does not need it: a.jsonl, column 'input': is a list in 1 row"
    assert any(note.startswith(said) for note in found.notes)
    alpaca = [{"instruction": "a", "output": 3, "input": odd} for odd in ("b", ["c"])]
    jsonl(path, alpaca)
    with pytest.raises(DataError, match=r"column 'input': is a list in 1 row \(line 2\)"):
        data.load(data.resolve(), task.roles, task.inputs, task.used_roles)


def test_numbers_of_a_regression_stay_numbers(tmp_path: Path) -> None:
    roles = {"text": True, "label": Role(needed=True, cell="number")}
    rows = [{"text": f"t{i}", "label": each} for i, each in enumerate((0.0, 1.0, 1, "2", 2.0))]
    assert list(read(jsonl(tmp_path / "a.jsonl", rows), roles).train["label"]) == [0, 1, 1, 2, 2]
