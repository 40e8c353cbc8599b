"""Reading forms: labels, bytes, line ends, encodings and tables in the shapes that tools write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
import pytest
from test_reading import LABELED, TAGGED, jsonl, parquet, read, refused

from peftkit.data.base import Data
from peftkit.data.splits import Splits
from peftkit.data.validation import Need
from peftkit.errors import DataError
from peftkit.tasks.base import Task

TEXTS = [f"text {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def labeled(path: Path, labels: list[Any]) -> Path:
    """Texts with these labels in turn, in the format that the path's ending says."""
    rows = [{"text": t, "label": labels[i % len(labels)]} for i, t in enumerate(TEXTS)]
    if path.suffix == ".parquet":
        return parquet(path, {"text": TEXTS, "label": [row["label"] for row in rows]})
    if path.suffix == ".csv":
        path.write_text(
            "".join(f"{t},{y}\n" for t, y in [("text", "label"), *map(dict.values, rows)])
        )
        return path
    return jsonl(path, rows)


def names_of(path: Path, task: Any = "text_classification", **settings: Any) -> tuple[str, ...]:
    """The labels that a task learns from a file."""
    asked = Task.parse(task, "task")
    data = Data.parse({"kind": "files", "path": str(path), **settings}, "data")
    splits = data.load(data.resolve(), asked.roles, asked.inputs, asked.used_roles)
    return asked.label_names(splits)


@pytest.mark.parametrize(
    ("suffix", "labels", "names"),
    [
        ("jsonl", [0.0, 2.0, 1.0], ("0", "1", "2")),
        ("parquet", [0.0, 1.0], ("0", "1")),
        ("csv", ["0.0", "1.0"], ("0", "1")),
        ("jsonl", [0, 1.0, "1", 0.0], ("0", "1")),
        ("csv", ["1", "1.0", "0"], ("0", "1")),
        ("jsonl", [1.0, "other"], ("1", "other")),
        ("jsonl", [0.5, 1.0, 2.0], ("0.5", "1.0", "2.0")),
        ("csv", ["3.0", "3.1"], ("3.0", "3.1")),
        ("jsonl", [True, False], ("false", "true")),
        ("parquet", [True, False], ("false", "true")),
        ("csv", ["True", "False"], ("False", "True")),
        ("jsonl", [["up"], ["down"]], ("down", "up")),
        ("parquet", [["up"], ["down"]], ("down", "up")),
        ("parquet", [b"up", b"down"], ("down", "up")),
    ],
)
def test_labels_are_named_as_their_file_spells_them(
    suffix: str, labels: list[Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    assert names_of(labeled(tmp_path / f"a.{suffix}", labels)) == names


def test_labels_with_and_without_a_point_are_one_class_over_all_files(tmp_path: Path) -> None:
    labeled(tmp_path / "train.jsonl", [0, 1])
    labeled(tmp_path / "test.jsonl", [0.0, 1.0])
    assert names_of(tmp_path) == ("0", "1")
    labeled(tmp_path / "test.jsonl", [0.0, 1.5])
    with pytest.raises(DataError, match=r"the label '0\.0', which is not one of 0, 1"):
        names_of(tmp_path)


def test_numbers_and_truths_find_their_names_among_those_given(tmp_path: Path) -> None:
    floats = labeled(tmp_path / "a.jsonl", [0.0, 1.0])
    assert set(read(floats, labels=["neg", "pos"]).train["label"]) == {"neg", "pos"}
    truths = labeled(tmp_path / "b.jsonl", [True, False])
    assert set(read(truths, labels=["False", "True"]).train["label"]) == {"False", "True"}


def test_one_item_lists_are_told_and_longer_ones_refused_with_their_rows(tmp_path: Path) -> None:
    path = labeled(tmp_path / "a.jsonl", [["x"], "y"])
    found = read(path)
    assert set(found.train["label"]) == {"x", "y"}
    told = "a.jsonl: column 'label' has lists of one value in 6 rows (line 1, line 3, line 5 and"
    assert any(note.startswith(told) for note in found.notes)
    said = refused(labeled(path, [["x"], ["x", "y"], {"z": 1}]))
    assert "column 'label': has 2 values in 4 rows (line 2, line 5, line 8 and 1 more)" in said
    assert "task=multilabel" in said and "is not a label in 4 rows (line 3, line 6, line 9" in said


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_sets_of_labels_may_be_written_as_numbers_and_truths(suffix: str, tmp_path: Path) -> None:
    for labels in ([[0.0, 1.0], [1.0, 1.0]], [[False, True], [True, True]], [[0, 1], [1, 1]]):
        path = labeled(tmp_path / f"a.{suffix}", labels)
        assert names_of(path, "multilabel", labels=["rude", "kind"]) == ("rude", "kind")
    columns = {"text": TEXTS, "rude": [0.0, 1.0] * 6, "kind": [True, False] * 6}
    path = parquet(tmp_path / "b.parquet", columns)
    asked = Task.parse({"kind": "multilabel", "columns": ["rude", "kind"]}, "task")
    encoded = [
        asked._members(cell, ["rude", "kind"])
        for cell in asked._cells(read(path, asked.roles).train)
    ]  # type: ignore[attr-defined]
    assert encoded[:2] == [[0, 1], [1, 0]]


def test_a_text_among_lists_of_labels_is_one_label_or_refused(tmp_path: Path) -> None:
    roles = Task.parse("multilabel", "task").roles
    path = labeled(tmp_path / "a.jsonl", [["x", "y"], "z", '["x", "z"]', [], 3])
    found = list(read(path, roles).train["label"][:5])
    assert found == [["x", "y"], ["z"], ["x", "z"], [], ["3"]]
    said = refused(labeled(path, [["x"], "y;z"]), roles)
    assert "is text in 6 rows (line 2, line 4, line 6 and 3 more), and a list in others" in said
    assert "holds null" not in said and "is null in 6 rows (line 2, item 1" in refused(
        labeled(path, [["x"], [None]]), roles
    )


@pytest.mark.parametrize("write", [json.dumps, str])
def test_lists_of_words_that_stand_as_text_are_lists(write: Any, tmp_path: Path) -> None:
    rows = [["EU", "says", '"no"'], ["it's", "so"]]
    lines = "".join(f"{write(row)}\t{write(['O'] * len(row))}\n" for row in rows)
    (tmp_path / "a.tsv").write_text(f"tokens\ttags\n{lines}")
    assert read(tmp_path / "a.tsv", TAGGED).train["tokens"][:] == rows
    (tmp_path / "a.tsv").write_text("tokens\ttags\n['EU' 'says']\t['O' 'O']\n")
    said = refused(tmp_path / "a.tsv", TAGGED)
    assert "column 'tokens': is text that looks like a list and is not in 1 row (line 2)" in said


def test_words_parted_by_blanks_may_hold_brackets(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("tokens\ttags\n[ 1 ]\tO O O\n[2]\tO\nsee\tO\n")
    assert list(read(tmp_path / "a.tsv", TAGGED).train["tokens"]) == ["[ 1 ]", "[2]", "see"]
    (tmp_path / "a.tsv").write_text("tokens\ttags\na b\t[0, 1]\nc\t[2]\n")
    assert read(tmp_path / "a.tsv", TAGGED).train["tags"][:] == [["0", "1"], ["2"]]
    jsonl(tmp_path / "b.jsonl", [{"tokens": t, "tags": ["O"] * 2} for t in ("a b", ["c", "d"])])
    assert read(tmp_path / "b.jsonl", TAGGED).train["tokens"][:] == [["a", "b"], ["c", "d"]]


def test_bytes_are_text_where_they_are_utf8_and_else_refused(tmp_path: Path) -> None:
    texts = ["naïve".encode(), "日本".encode()]
    path = parquet(tmp_path / "a.parquet", {"text": texts, "label": ["x", "y"]})
    assert list(read(path).train["text"]) == ["naïve", "日本"]
    parquet(path, {"text": [*texts, b"caf\xe9", b"\xff\xd8"], "label": [1, 2, 1, 2]})
    said = refused(path)
    assert "column 'text': is bytes that are not UTF-8 (byte 0xe9) in 1 row (row 2)" in said
    assert "(byte 0xff) in 1 row (row 3)" in said


def test_lists_objects_and_half_characters_are_no_texts(tmp_path: Path) -> None:
    odd: list[Any] = ["fine", ["a", "b"], {"en": "a"}, "half \ud83d", "\ud83d\ude00"]
    said = refused(jsonl(tmp_path / "a.jsonl", [{"text": t, "label": "x"} for t in odd]))
    assert "column 'text': is a list in 1 row (line 2) - join its parts into one text" in said
    assert "column 'text': is an object in 1 row (line 3)" in said
    assert r"has half a character (\ud83d) in 1 row (line 4) - fix or remove it" in said
    assert "line 5" not in said


ANSWERED: Mapping[str, Need] = {"question": True, "context": True, "answers": True}


def test_answers_that_are_numbers_or_truths_are_text_with_whole_places(tmp_path: Path) -> None:
    answers: list[Any] = [
        "3", 3, True, ["3", 3.5], {"text": ["3", 3], "answer_start": [4.0, None]},
        {"text": [], "answer_start": []}, '{"text": [3], "answer_start": [4]}', [{"text": 3}],
    ]  # fmt: skip
    rows = [{"question": 1, "context": 2.5, "answers": each} for each in answers]
    found = read(jsonl(tmp_path / "a.jsonl", rows), ANSWERED).train
    assert found["answers"][:] == [
        "3", "3", "true", ["3", "3.5"], {"text": ["3", "3"], "answer_start": [4, None]},
        {"text": [], "answer_start": []}, {"text": ["3"], "answer_start": [4]}, [{"text": "3"}],
    ]  # fmt: skip
    assert [type(found["answers"][i]["answer_start"][0]) for i in (4, 6)] == [int, int]
    assert (found["question"][0], found["context"][0]) == ("1", "2.5")


def test_an_answer_may_begin_with_a_bracket(tmp_path: Path) -> None:
    said = ['["Paris", "in Paris"]', '[{"text": "Paris"}]', "[3]", "[sic] Paris", "[]", "{a}"]
    rows = [{"question": "q", "context": "c", "answers": each} for each in said]
    found = read(jsonl(tmp_path / "a.jsonl", rows), ANSWERED).train["answers"][:]
    none = {"text": [], "answer_start": []}
    assert found == [["Paris", "in Paris"], [{"text": "Paris"}], "[3]", "[sic] Paris", none, "{a}"]


def test_numbers_are_questions_and_answers_of_an_instruction(tmp_path: Path) -> None:
    rows = [{"question": i, "answer": [2 * i, i > 3][i % 2]} for i in range(1, 9)]
    task = Task.parse("instruction_tuning", "task")
    data = Data.parse(
        {"kind": "files", "path": str(jsonl(tmp_path / "a.jsonl", rows)), "test": 1}, "data"
    )
    splits = data.load(data.resolve(), task.roles, task.inputs, task.used_roles)
    task.label_names(splits)
    assert set(splits.train["answer"]) <= {"4", "8", "12", "16", "true", "false"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_every_line_end_and_encoding_gives_the_same_rows(
    suffix: str, encoding: str, end: str, tmp_path: Path
) -> None:
    mark = {".csv": ",", ".tsv": "\t"}.get(suffix)
    rows = [("text", "label"), ("naïve 日本", "x"), ("b", "ý")]
    lines = [mark.join(row) for row in rows] if mark else []
    lines = lines or [json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]]
    (tmp_path / f"a{suffix}").write_bytes(
        "".join(f"{line}{end}" for line in lines).encode(encoding)
    )
    found = read(tmp_path / f"a{suffix}").train
    assert list(zip(found["text"], found["label"], strict=True)) == rows[1:]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "shift-jis"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_other_encodings_are_refused_with_their_line(
    encoding: str, suffix: str, tmp_path: Path
) -> None:
    text = "naïve" if encoding == "cp1252" else "日本"
    rows = f"text,label\na,x\n{text},y\n"
    if suffix in (".json", ".jsonl"):
        rows = "".join(f'{{"text": "{each}", "label": "x"}}\n' for each in ("a", "b", text))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(rows.replace(",", "\t" if suffix == ".tsv" else ",").encode(encoding))
    said = refused(path)
    assert "is not UTF-8" in said and ("line 1" if encoding == "utf-16" else "line 3") in said


def test_line_ends_within_quoted_texts_stay(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.csv").write_bytes(f'text,label{end}"two\nlines\rof three",x{end}'.encode())
        assert list(read(tmp_path / "a.csv").train["text"]) == ["two\nlines\rof three"]
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\na\rb\tx\n")
    assert list(read(tmp_path / "a.tsv").train["text"]) == ["a\rb"]


@pytest.mark.parametrize("header", ["te\rxt,label\n", "text,la\rbel\r\n", '"text,label\n'])
def test_a_header_that_cannot_be_read_is_named(header: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f"{header}a,x\nb,y\n".encode())
    assert "a.csv, line " in refused(tmp_path / "a.csv")


def test_a_header_may_span_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"the\ntext",label\na,x\n')
    assert list(read(tmp_path / "a.csv", text="the\ntext").train["text"]) == ["a"]


FRAME = pandas.DataFrame({"text": TEXTS, "label": [0.0, 1.0] * 6}).query("text != 'text 3'")


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
@pytest.mark.parametrize("indent", [None, 1])
def test_what_pandas_writes_is_read(orient: Any, indent: int | None, tmp_path: Path) -> None:
    FRAME.to_json(tmp_path / "a.json", orient=orient, indent=indent)
    found = read(tmp_path / "a.json").train
    assert list(found["text"]) == list(FRAME["text"])
    assert list(found["label"]) == [f"{each:g}" for each in FRAME["label"]]


def test_tables_without_names_or_row_numbers_are_refused(tmp_path: Path) -> None:
    FRAME.to_json(tmp_path / "a.json", orient="values")
    assert "row 0, row 1, row 2 and 8 more: is not an object" in refused(tmp_path / "a.json")
    FRAME.set_axis([f"id {i}" for i in range(11)]).to_json(tmp_path / "a.json")
    assert "column 'text': is an object in 1 row (row 0)" in refused(tmp_path / "a.json")
    FRAME.to_json(tmp_path / "a.jsonl")
    assert "to_json(orient='records', lines=True)" in refused(tmp_path / "a.jsonl")


def test_one_row_on_a_line_by_itself_is_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}], "translation": {"en": "a"}}
    (tmp_path / "a.json").write_text(json.dumps(row))
    found = read(tmp_path / "a.json", {"messages": True}).train
    assert found["messages"][:] == [row["messages"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"text": ' + "[" * 100_000, "is nested too deeply"),
        (f'{{"text": {"1" * 5000}, "label": 1}}', "has a number with thousands of digits"),
        ('{"text": Infinity, "label": -Infinity}', None),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_beyond_what_python_parses_is_named(
    suffix: str, content: str, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / f"a{suffix}").write_text(content)
    if said:
        assert said in refused(tmp_path / f"a{suffix}")
    else:
        (row,) = read(tmp_path / f"a{suffix}").train
        assert (row["text"], row["label"]) == ("Infinity", "-Infinity")


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "names a column twice" in refused(tmp_path / "a.parquet")


def test_dates_and_exact_numbers_of_parquet_are_text(tmp_path: Path) -> None:
    from datetime import date
    from decimal import Decimal

    columns = {"text": [date(2024, 2, 29)], "label": [Decimal("1.50")]}
    (row,) = read(parquet(tmp_path / "a.parquet", columns)).train
    assert (row["text"], row["label"]) == ("2024-02-29", "1.50")


def test_row_names_and_order_of_plain_text_stay_what_they_were(tmp_path: Path) -> None:
    found: Splits = read(labeled(tmp_path / "a.csv", ["x", "y"]), LABELED)
    assert list(found.train["row"]) == [f"a.csv:{i}" for i in range(12)]
