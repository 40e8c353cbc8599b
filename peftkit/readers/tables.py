"""Readers of CSV and TSV files."""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from peftkit.readers.base import DataReader
from peftkit.readers.lines import Flaw, Lines, Record


class CsvReader(DataReader):
    """Comma-separated values with a header line."""

    suffixes = (".csv",)

    def records(self, path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
        """Yield the rows; a quoted value may span lines."""
        lines = Lines(path)
        rows = _parse_csv(lines)
        try:
            yield from _table_records(lines, rows)
        except csv.Error as error:
            what = f"is not readable as csv ({error}) - fix its quotes"
            yield Flaw(f"line {rows.line_num}", what)

    def columns(self, path: Path) -> list[str]:
        """Return the header."""
        try:
            return next(_parse_csv(Lines(path)), [])
        except csv.Error:
            return []  # `records` reports it


class TsvReader(DataReader):
    """Tab-separated values with a header line; quotes are ordinary characters."""

    suffixes = (".tsv",)

    def records(self, path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
        """Yield the rows, one per line."""
        lines = Lines(path)
        yield from _table_records(lines, map(_split_tabs, lines))

    def columns(self, path: Path) -> list[str]:
        """Return the header."""
        return next(map(_split_tabs, Lines(path)), [])


def _parse_csv(lines: Lines) -> Any:
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the default of 131072 characters
    return csv.reader(lines, strict=True)


def _split_tabs(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    return line.split("\t") if line else []


def _table_records(lines: Lines, rows: Iterator[list[str]]) -> Iterator[Record | Flaw]:
    header: list[str] = next(rows, [])
    if len(set(header)) < len(header):
        yield Flaw("line 1", "names a column twice - rename or remove one")
    for number, row in enumerate(rows, 2):
        yield from lines.new_flaws()
        # a quoted value may span lines: csv's reader knows the line on which its row ends
        place = f"line {getattr(rows, 'line_num', number)}"
        if len(row) == len(header):
            yield Record(place, dict(zip(header, row, strict=True)))
        elif row:
            what = f"has {len(row)} fields, but the header has {len(header)}"
            yield Flaw(place, f"{what} - quote or escape it")
    yield from lines.new_flaws()
