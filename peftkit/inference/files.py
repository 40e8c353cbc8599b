"""Predict the rows of a data file and write them with their predictions."""

import base64
import csv
import json
import os
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from peftkit.data.validation import RequestedColumn, find_flaws, find_unreadable_cells, scan_file
from peftkit.errors import DataError, nearest
from peftkit.inference.predictor import Inputs, inputs_of, predictions
from peftkit.readers.base import reader_for, readers
from peftkit.readers.lines import Flaw
from peftkit.records.run_dir import RunDir

ENDINGS = (".csv", ".jsonl")
Values = Mapping[str, Any]


def predict_file(run: Path, source: Path, to: Path | None, as_json: bool = False) -> int:
    """Write the rows of `source` (any data format) with the predictions of `run` as additional
    columns to `to`, a .csv or .jsonl file; the number of rows.

    Without `to` they are printed, as CSV or as JSON lines (`as_json`). Raises `DataError` for a
    file that cannot be read or lacks a column; rows written before stay in `to`.partial.
    """
    folder = RunDir.open(run).path
    inputs = inputs_of(folder)  # first: it imports the recipe's plug-ins, which may add formats
    check_endings(source, to)
    rows = checked_rows(source, inputs)
    as_json = as_json if to is None else to.suffix.lower() == ".jsonl"
    if to is None:
        return write_rows(folder, rows, sys.stdout, as_json)
    with written_at_once(to) as out:
        return write_rows(folder, rows, out, as_json)


def check_endings(source: Path, to: Path | None) -> None:
    """Raise `DataError` for a missing file or an unknown file format."""
    if not source.is_file():
        raise DataError(f"{source}: there is no such file - name a file with the rows to predict")
    if source.suffix.lower() not in readers():
        known = ", ".join(readers())
        raise DataError(f"{source}: unknown format - save it as one of {known}")
    if to is not None and to.suffix.lower() not in ENDINGS:
        raise DataError(f"{to}: should end in {' or '.join(ENDINGS)} - rename it")


@contextmanager
def written_at_once(path: Path) -> Iterator[TextIO]:
    """A file that is moved to `path` once it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    # lone surrogates, which JSON allows and UTF-8 does not, are written as JSON escapes
    with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        yield file
    os.replace(partial, path)


def checked_rows(source: Path, inputs: Inputs) -> Iterator[Values]:
    """The rows of a file, once all its columns and cells have been checked.

    Raises `DataError` with each fault; empty cells are none.
    """
    first = next(rows_of(source), None)
    if first is None:
        return iter(())
    roles = (*inputs.required, *inputs.optional)
    columns = {role: inputs.columns.get(role, role) for role in roles}
    present = [role for role, column in columns.items() if role in first or column in first]
    missing = [role for role in inputs.required if role not in present]
    if missing and not (inputs.any_of and present):
        column = columns[missing[0]]
        raise DataError(f"{source}: has no column {column!r} - {nearest(column, list(first))}")
    places = {role: role if role in first else columns[role] for role in present}
    used = {*inputs.required, *inputs.used(present)}
    wanted = [
        RequestedColumn(role, place, needed=False, cell=inputs.cells[role])
        for role, place in places.items()
        if role in used
    ]
    found = scan_file(source, source.name, wanted)
    faults = [
        *find_flaws(found),
        *(f for want in wanted for f in find_unreadable_cells(found, want)),
    ]
    if faults:
        raise DataError(f"{source} cannot be read:", faults)
    return rows_of(source)


def rows_of(source: Path) -> Iterator[Values]:
    """The rows of a file; raises `DataError` for a row that cannot be read."""
    for record in reader_for(source).records(source):
        if isinstance(record, Flaw):
            raise DataError(f"{source}, {record.place}: {record.what}")
        yield record.values


def write_rows(folder: Path, rows: Iterator[Values], out: TextIO, as_json: bool) -> int:
    """Write each row with its prediction; the number of rows."""
    pending: deque[Values] = deque()

    def read() -> Iterator[Values]:
        for row in rows:
            pending.append(row)
            yield row

    writer: Any = None
    columns: set[str] = set()
    count = 0
    for count, prediction in enumerate(predictions(folder, read()), 1):
        row = pending.popleft()
        columns |= row.keys()
        if as_json:
            new = {new_name(key, columns): value for key, value in prediction.items()}
            out.write(json.dumps({**row, **new}, ensure_ascii=False, default=to_text) + "\n")
            continue
        line = {key: csv_cell(value) for key, value in row.items()} | flatten(prediction, columns)
        writer = writer or csv_writer(out, line)
        if late := [key for key in line if key not in writer.fieldnames]:
            what = f"row {count} has a column {late[0]!r} that the first row lacks"
            raise DataError(f"{what} - write .jsonl, where each row has its own columns")
        writer.writerow(line)
    return count


def csv_writer(out: TextIO, first: Values) -> Any:
    """A CSV writer with the columns of the first row."""
    writer = csv.DictWriter(out, list(first))
    writer.writeheader()
    return writer


def flatten(prediction: Values, columns: Collection[str]) -> dict[str, Any]:
    """A prediction as columns; the label is `predicted`, as `label` may be the true one."""
    flat: dict[str, Any] = {}
    for key, value in prediction.items():
        name = {"label": "predicted", "probabilities": "probability"}.get(key, key)
        if isinstance(value, Mapping):
            parts = {f"{name}[{inner}]": number for inner, number in value.items()}
        else:
            parts = {name: value}
        flat |= {new_name(part, columns): csv_number(number) for part, number in parts.items()}
    return flat


def new_name(name: str, columns: Collection[str]) -> str:
    """The name of a new column, which is none of the row's columns."""
    while name in columns:
        name = f"predicted_{name}"
    return name


def csv_cell(value: Any) -> Any:
    """A value for CSV: lists and mappings as JSON."""
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=to_text)
    return to_text(value) if isinstance(value, bytes) else value


def to_text(value: Any) -> str:
    """A value that JSON cannot hold: bytes as UTF-8 or else base64, others by `str`."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def csv_number(value: Any) -> Any:
    """A value of a prediction for CSV: numbers with six decimal places."""
    if isinstance(value, float):
        return f"{value:.6f}" if abs(value) < 1e6 else repr(value)
    return csv_cell(value)
