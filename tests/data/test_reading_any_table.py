"""Reading any table: whatever its cells, a task is shown what they say, or the place is named."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftkit.data.base import Data
from peftkit.errors import DataError

NEEDED = {"text": True, "label": True, "tokens": False, "prompt": False}
Rows = Sequence[Mapping[str, Any]]
FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""Each example writes and reads files; the same ones every time."""


class Refused(Exception):
    """What a cell is that has no clear meaning."""


def spelled(value: Any) -> str:
    """A scalar as json writes it; bytes as the text that they are."""
    if isinstance(value, (list, dict)) or value is None or value != value:
        raise Refused
    try:
        value = value.decode() if isinstance(value, bytes) else value
        return value.encode().decode() if isinstance(value, str) else json.dumps(value)
    except UnicodeError:
        raise Refused from None


def text_of(value: Any) -> str:
    said = spelled(value)
    if not said.strip():
        raise Refused
    return said


def label_of(value: Any) -> str:
    return text_of(value[0] if isinstance(value, list) and len(value) == 1 else value)


def tokens_of(value: Any) -> list[str] | None:
    return None if value is None else [spelled(each) for each in value]


def prompt_of(value: Any) -> Any:
    if value is None or value != value or value == {}:
        return None
    if isinstance(value, list):
        if not all(isinstance(each, dict) for each in value):
            raise Refused
        return value
    return spelled(value)


MEANINGS: Mapping[str, Callable[[Any], Any]] = {
    "text": text_of, "label": label_of, "tokens": tokens_of, "prompt": prompt_of,
}  # fmt: skip


def without_fractions(labels: list[str]) -> list[str]:
    """Labels all of whose numbers are whole: those written with .0 are the same without."""
    numbers = [float(each) for each in labels if is_number(each)]
    if not all(each.is_integer() for each in numbers if math.isfinite(each)):
        return labels
    return [re.sub(r"^([+-]?\d+)\.0+$", r"\1", each) for each in labels]


def is_number(said: str) -> bool:
    try:
        return "_" not in said and math.isfinite(float(said))
    except ValueError:
        return False


def check(path: Path, rows: Rows, place: Callable[[int], str]) -> None:
    """Compare what is read with what the cells say; the first row without a clear meaning is
    named."""
    right, wrong = [], []
    for index, row in enumerate(rows):
        try:
            right.append({name: MEANINGS[name](value) for name, value in row.items()})
        except Refused:
            wrong.append(place(index))
    data = Data.parse({"kind": "files", "path": str(path), "validation": 0, "test": 0}, "data")
    roles = {name: NEEDED[name] for name in rows[0]}
    if wrong:
        with pytest.raises(DataError) as caught:
            data.load(data.resolve(), roles)
        assert re.search(rf"\b{wrong[0]}\b", str(caught.value))
        return
    shown = list(data.load(data.resolve(), roles).train)
    labels = without_fractions([each["label"] for each in right])
    right = [{**row, "label": said} for row, said in zip(right, labels, strict=True)]
    assert [{name: row[name] for name in roles} for row in shown] == right


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
filled = plain.filter(lambda said: bool(said.strip()))
half = st.sampled_from(["\ud800", "a\udfffb"])
number = st.integers(-3, 3) | st.integers() | st.sampled_from([0.0, 1.0, -2.5, 0.1, 1e30])
scalar = filled | number | st.booleans()
odd = st.sampled_from([None, [], {}, "", " ", {"a": 1}, [1, "b"], ["a"], math.nan])
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"])},
    optional={"content": st.none() | plain, "n": number | st.lists(scalar, max_size=2)},
)
CLEAN: Mapping[str, st.SearchStrategy[Any]] = {
    "text": scalar,
    "label": st.sampled_from(["x", "1", 0, 1, 1.0, ["y"], True]) | scalar,
    "tokens": st.none() | st.lists(scalar, max_size=3),
    "prompt": filled | number | st.lists(message, max_size=2),
}
ODD: Mapping[str, st.SearchStrategy[Any]] = {
    "text": odd | half, "label": odd, "tokens": st.lists(odd | half), "prompt": odd | half,
}  # fmt: skip


def tables(*columns: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[list[Any]]:
    """Rows of the first strategies alone, or with some of the others among them."""
    rows = [st.fixed_dictionaries(dict(each)) for each in columns]
    mixed = {name: st.one_of(*(each[name] for each in columns)) for name in columns[0]}
    return st.lists(rows[0], min_size=1, max_size=8) | st.lists(
        st.one_of(*rows, st.fixed_dictionaries(mixed)), min_size=1, max_size=8
    )


@FEW
@given(rows=tables(CLEAN, ODD))
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_any_json(ending: str, tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> None:
    path = tmp_path_factory.mktemp("json") / f"a{ending}"
    if ending == ".json":
        path.write_text(json.dumps(rows, indent=1))
        check(path, rows, lambda index: f"row {index}")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        check(path, rows, lambda index: f"line {index + 1}")


TEXTS: Mapping[str, st.SearchStrategy[Any]] = {
    "text": filled,
    "label": st.sampled_from(["x", "1", "1.0", "0.0", "true", "nan"]) | filled,
}
BLANKS = dict.fromkeys(TEXTS, st.sampled_from(["", " "]))


@FEW
@given(
    rows=tables(TEXTS, BLANKS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\r\r\n"]),
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_any_table_of_text(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, rows: Rows, encoding: str, end: str
) -> None:
    if suffix == ".tsv" or end == "\r\r\n":  # which hold no line ends within a cell
        rows = [{name: re.sub(r"[\r\n\t]", "-", row[name]) for name in row} for row in rows]
    path = tmp_path_factory.mktemp("text") / f"a{suffix}"
    out, lines = io.StringIO(newline=""), []
    quoted = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
    for row in [{"text": "text", "label": "label"}, *rows]:
        cells = [row["text"], row["label"]]
        if suffix == ".csv":
            quoted.writerow(cells)
        else:
            out.write("\t".join(cells) + end)
        lines.append(out.getvalue().count("\r" if end == "\r" else "\n"))
    path.write_bytes(out.getvalue().encode(encoding))
    check(path, rows, lambda index: f"line {lines[index + 1]}")


PARQUET: Mapping[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "string": (filled, plain),
    "large_string": (filled, plain),
    "int64": (st.integers(-(2**63), 2**63 - 1), st.none()),
    "float64": (st.floats(allow_nan=False, allow_infinity=False), st.just(math.nan)),
    "bool_": (st.booleans(), st.none()),
    "binary": (filled.map(str.encode), st.binary(max_size=4)),
    "list": (st.lists(filled, min_size=1, max_size=1), st.lists(plain, max_size=2)),
}
"""By type the cells that say something, and others."""


@FEW
@given(
    data=st.data(),
    text=st.sampled_from([*PARQUET][:-1]),
    label=st.sampled_from([*PARQUET]),
    odd=st.booleans(),
)
def test_any_parquet(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, text: str, label: str, odd: bool
) -> None:
    import pyarrow
    import pyarrow.parquet

    columns, arrays = {}, {}
    for name, kind in (("text", text), ("label", label)):
        typed = pyarrow.list_(pyarrow.string()) if kind == "list" else getattr(pyarrow, kind)()
        clean, other = PARQUET[kind]
        cells = clean | other | st.none() if odd else clean
        columns[name] = data.draw(st.lists(cells, min_size=4, max_size=4), name)
        arrays[name] = pyarrow.array(columns[name], typed)
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    check(path, rows, lambda index: f"row {index}")
