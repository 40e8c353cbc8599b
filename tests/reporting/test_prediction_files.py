"""Prediction files: lines cut at their quotes say what the same lines parsed as JSON say."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.reporting.analysis.prediction_files import cut_table, parsed_table, read_predictions

ROW = {"row": "test.csv:0", "hash": "00ff", "label": "no", "predicted": "yes"}
PLAIN = {**ROW, "probabilities": [0.25, 0.75]}
Lines = list[dict[str, Any]]


def written(rows: Lines) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


words = st.text(max_size=8)
rows = st.fixed_dictionaries(
    {"row": words, "hash": words, "label": words, "predicted": words},
    optional={"probabilities": st.lists(st.floats(0, 1), max_size=3), "more": words},
)


@given(rows=st.lists(rows, min_size=1, max_size=5), raw=st.booleans())
@settings(max_examples=200, deadline=None)
def test_cut_lines_are_parsed_lines_or_are_left_to_the_parser(rows: Lines, raw: bool) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=not raw) + "\n" for row in rows)
    content = lines.encode("utf-8", errors="replace")
    found = cut_table(content)
    if found is not None:
        assert found.to_pydict() == {key: [row[key] for row in rows] for key in ROW}


def test_lines_as_runs_write_them_are_cut() -> None:
    rows = [{**PLAIN, "row": f"test.csv:{i}"} for i in range(5000)]
    found = cut_table(written(rows))
    assert found is not None
    assert found.to_pydict() == parsed_table(written(rows), False).to_pydict()


@pytest.mark.parametrize(
    "odd",
    [
        ROW,
        {**PLAIN, "label": None},
        {**PLAIN, "label": 'a "quoted" one'},
        {**PLAIN, "more": "x"},
        {**PLAIN, "row": 7},
        dict(reversed(PLAIN.items())),
        {"hash": "00ff", "row": "a", "label": "b", "predicted": "c", "probabilities": []},
    ],
)
def test_other_lines_are_left_to_the_parser(odd: dict[str, Any]) -> None:
    assert cut_table(written([odd])) is None
    assert cut_table(written([PLAIN, odd])) is None


def test_probabilities_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_bytes(written([PLAIN]))
    table, trouble = read_predictions(tmp_path, True)
    assert table is not None and trouble == ""
    assert table["probabilities"].to_pylist() == [[0.25, 0.75]]
    assert read_predictions(tmp_path, False)[0].column_names == list(ROW)
