"""Scored files: the rows of a data file with a run's answers behind them."""

import base64
import csv
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from peftkit.data.readers.formats import Flaw, records
from peftkit.data.validation import Wanted, flaws_of, survey, unreadable_cells
from peftkit.errors import DataError, nearest
from peftkit.hub.source import DATA_SUFFIXES
from peftkit.inference.predictor import Inputs, inputs_of, predictions
from peftkit.records.run_dir import RunDir

ENDINGS = (".csv", ".jsonl")
Values = Mapping[str, Any]


def predict_file(run: Path, source: Path, to: Path | None, as_json: bool = False) -> int:
    """Write the rows of `source` (any format that data are read from) with what `run` says of each
    behind them, as csv or jsonl by the ending of `to`; the number of rows.

    Without `to` they are printed: as csv, or `as_json` a line each. Raises `DataError` for a file
    that cannot be read or lacks a column; what was written until then stays in `to`.partial.
    """
    folder = RunDir.open(run).path
    check_endings(source, to)
    rows = checked(source, inputs_of(folder))
    as_json = as_json if to is None else to.suffix.lower() == ".jsonl"
    if to is None:
        return write_rows(folder, rows, sys.stdout, as_json)
    with finished_at_once(to) as out:
        return write_rows(folder, rows, out, as_json)


def check_endings(source: Path, to: Path | None) -> None:
    """Refuse files of which it cannot be told how to read or write them."""
    if not source.is_file():
        raise DataError(f"{source}: there is no such file - name one with the rows to predict")
    if source.suffix.lower() not in DATA_SUFFIXES:
        known = ", ".join(DATA_SUFFIXES)
        raise DataError(f"{source}: ends in none of {known} - save it as one of those")
    if to is not None and to.suffix.lower() not in ENDINGS:
        raise DataError(f"{to}: should end in {' or '.join(ENDINGS)} - name it so")


@contextmanager
def finished_at_once(path: Path) -> Iterator[TextIO]:
    """A file that stands at `path` once all is written."""
    beside = path.with_name(f"{path.name}.partial")
    # half a character, as only json can hold it, is written as json writes it
    with open(beside, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        yield file
    os.replace(beside, path)


def checked(source: Path, inputs: Inputs) -> Iterator[Values]:
    """The rows of a file, the first of which has the columns that the run reads.

    Raises `DataError` that names every place which cannot be read; blank cells can.
    """
    first = next(rows_of(source), None)
    if first is None:
        return iter(())
    columns = {role: inputs.columns.get(role, role) for role in (*inputs.asked, *inputs.also)}
    there = [role for role, column in columns.items() if role in first or column in first]
    lacking = [role for role in inputs.asked if role not in there]
    if lacking and not (inputs.any_of and there):
        column = columns[lacking[0]]
        raise DataError(f"{source}: has no column {column!r} - {nearest(column, list(first))}")
    places = {role: role if role in first else columns[role] for role in there}
    of_use = {*inputs.asked, *inputs.used(there)}
    wanted = [
        Wanted(role, place, needed=False, cell=inputs.cells[role])
        for role, place in places.items()
        if role in of_use
    ]
    found = survey(source, source.name, wanted)
    faults = [*flaws_of(found), *(f for want in wanted for f in unreadable_cells(found, want))]
    if faults:
        raise DataError(f"the rows of {source} cannot be read:", faults)
    return rows_of(source)


def rows_of(source: Path) -> Iterator[Values]:
    """The rows of a file, one at a time."""
    for record in records(source):
        if isinstance(record, Flaw):
            raise DataError(f"{source}, {record.place}: {record.what}")
        yield record.values


def write_rows(folder: Path, rows: Iterator[Values], out: TextIO, as_json: bool) -> int:
    """Write each row with what is said of it."""
    kept: deque[Values] = deque()

    def read() -> Iterator[Values]:
        for row in rows:
            kept.append(row)
            yield row

    sheet: Any = None
    taken: Values = {}
    count = 0
    for count, said in enumerate(predictions(folder, read()), 1):
        row = kept.popleft()
        taken = {**taken, **row}
        if as_json:
            answer = {free(key, taken): value for key, value in said.items()}
            out.write(json.dumps({**row, **answer}, ensure_ascii=False, default=spelled) + "\n")
            continue
        line = {key: cell(value) for key, value in row.items()} | flat(said, taken)
        sheet = sheet or begun(out, line)
        if new := [key for key in line if key not in sheet.fieldnames]:
            what = f"row {count} has a column {new[0]!r}, which the first has not"
            raise DataError(f"{what} - write .jsonl, where each row has its own")
        sheet.writerow(line)
    return count


def begun(out: TextIO, line: Values) -> Any:
    """A sheet with the columns of its first line."""
    sheet = csv.DictWriter(out, list(line))
    sheet.writeheader()
    return sheet


def flat(said: Values, row: Values) -> dict[str, Any]:
    """An answer as columns of a sheet; a label is called `predicted`, beside the right one."""
    found: dict[str, Any] = {}
    for key, value in said.items():
        name = {"label": "predicted", "probabilities": "probability"}.get(key, key)
        if isinstance(value, Mapping):
            parts = {f"{name}[{inner}]": number for inner, number in value.items()}
        else:
            parts = {name: value}
        found |= {free(part, row): rounded(number) for part, number in parts.items()}
    return found


def free(name: str, row: Values) -> str:
    """A name for a new column that is none of the row's."""
    while name in row:
        name = f"predicted_{name}"
    return name


def cell(value: Any) -> Any:
    """A value as a sheet holds it: lists and mappings as JSON, unknown as nothing."""
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=spelled)
    return spelled(value) if isinstance(value, bytes) else value


def spelled(value: Any) -> str:
    """What json has no form for: bytes as text where they are that, else as base64."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def rounded(value: Any) -> Any:
    """A value of an answer as a sheet holds it."""
    if isinstance(value, float):
        return f"{value:.6f}" if abs(value) < 1e6 else repr(value)
    return cell(value)
