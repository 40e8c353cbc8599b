"""Data files, one record at a time: csv, tsv, json, jsonl and parquet, streamed from disk."""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from peftkit.data.readers.json_files import json_lines, json_rows
from peftkit.data.readers.lines import Flaw, Lines, Record
from peftkit.data.readers.parquet_files import parquet_columns, parquet_rows

__all__ = ["COLUMNS_OF_WORDS", "Flaw", "Record", "columns_of", "records"]

COLUMNS_OF_WORDS = (".conll", ".conllu", ".iob", ".iob2", ".bio")
"""Endings of files with a word a line (see `peftkit.data.readers.conll`)."""


def records(path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
    """The rows of `path`, and the places that cannot be read; of parquet only `wanted` columns."""
    readers = {".csv": _csv, ".tsv": _tsv, ".jsonl": json_lines, ".json": json_rows}
    suffix = path.suffix.lower()
    if suffix in COLUMNS_OF_WORDS:
        return _words_in_lines(path)
    return parquet_rows(path, wanted) if suffix == ".parquet" else readers[suffix](path)


def columns_of(path: Path) -> list[str]:
    """The columns that the file itself declares; none for json, whose rows each name their own."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_columns(path)
    lines = Lines(path)
    try:
        if suffix == ".csv":
            return next(_csv_rows(lines), [])
        return next(map(_fields, lines), []) if suffix == ".tsv" else []
    except csv.Error:
        return []  # `records` says what is wrong with it


def _csv(path: Path) -> Iterator[Record | Flaw]:
    lines = Lines(path)
    reader = _csv_rows(lines)
    try:
        yield from _table(lines, reader)
    except csv.Error as error:
        yield Flaw(f"line {reader.line_num}", f"is not readable as csv ({error}) - mend its quotes")


def _csv_rows(lines: Lines) -> Any:
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the module's 131072 characters
    return csv.reader(lines, strict=True)


def _tsv(path: Path) -> Iterator[Record | Flaw]:
    """Quotes are plain characters in tsv (as csv.QUOTE_NONE): texts hold unpaired ones."""
    lines = Lines(path)
    yield from _table(lines, (_fields(line) for line in lines))


def _fields(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    return line.split("\t") if line else []


def _table(lines: Lines, rows: Iterator[list[str]]) -> Iterator[Record | Flaw]:
    header: list[str] = next(rows, [])
    if len(set(header)) < len(header):
        yield Flaw("line 1", "names a column twice - rename or remove one")
    for number, row in enumerate(rows, 2):
        yield from lines.new_flaws()
        # a quoted text may span lines: the reader knows the line where its row ends
        place = f"line {getattr(rows, 'line_num', number)}"
        if len(row) == len(header):
            yield Record(place, dict(zip(header, row, strict=True)))
        elif row:
            what = f"has {len(row)} fields, but the header has {len(header)}"
            yield Flaw(place, f"{what} - quote or escape it")
    yield from lines.new_flaws()


def _words_in_lines(path: Path) -> Iterator[Record | Flaw]:
    """A word a line with its tags, as CoNLL's shared tasks give them."""
    from peftkit.data.readers.conll import sentences

    lines = Lines(path)
    for sentence in sentences(lines, universal=path.suffix.lower() == ".conllu"):
        yield from lines.new_flaws()
        yield sentence
    yield from lines.new_flaws()
