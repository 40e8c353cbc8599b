"""Readers of JSON and JSON Lines files."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from peftkit.readers.base import DataReader
from peftkit.readers.lines import Flaw, Lines, Record
from peftkit.readers.squad_json import flatten_squad, is_squad
from peftkit.readers.values import LiteralFloat


class JsonLinesReader(DataReader):
    """One object per line."""

    suffixes = (".jsonl",)

    def records(self, path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
        """Yield a row per line."""
        lines = Lines(path)
        for number, line in enumerate(lines, 1):
            yield from lines.new_flaws()
            if line.strip():
                yield to_record(parse_json(line, f"line {number}"), f"line {number}")


class JsonReader(JsonLinesReader):
    """A list of objects, a table as pandas writes it, SQuAD's nesting, or one object per line."""

    suffixes = (".json",)

    def records(self, path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
        """Yield the rows of the whole file's value, or a row per line."""
        if has_object_lines(path):
            yield from super().records(path, wanted)
            return
        lines = Lines(path)
        text = "".join(lines)
        yield from lines.new_flaws()
        value = parse_json(text, "") if text.strip() else []
        if isinstance(value, Flaw):
            yield value
            return
        rows = find_rows(value, wrapped="\n" in text.strip())
        yield from (to_record(row, f"row {index}") for index, row in enumerate(rows))


def has_object_lines(path: Path) -> bool:
    """Return whether the file has several lines and the first one is an object on its own."""
    filled = (line for line in Lines(path) if line.strip())
    first, second = next(filled, "").strip(), next(filled, None)
    if second is None or not first.startswith("{"):
        return False
    return isinstance(parse_json(first, ""), dict)


def parse_json(text: str, place: str) -> Any:
    """Return the parsed value, or a `Flaw` at `place` (or, if empty, at the line of the error)."""
    try:
        return json.loads(text, parse_float=LiteralFloat, parse_constant=LiteralFloat)
    except json.JSONDecodeError as error:
        what = f"is not json ({error.msg}) - fix or remove it"
        return Flaw(place or f"line {error.lineno}", what)
    except RecursionError:
        return Flaw(place or "row 0", "is nested too deeply to be read - fix or remove it")
    except ValueError:  # Python's limit on the digits of an integer
        return Flaw(place or "row 0", "has a number with thousands of digits - write it as text")


def to_record(value: object, place: str) -> Record | Flaw:
    """Return a parsed value as a row, or the flaw that it is or has."""
    if isinstance(value, Flaw):
        return value
    if isinstance(value, dict):
        return Record(place, value)
    return Flaw(place, "is not an object ({...}) - write an object with the columns as keys")


def find_rows(value: Any, wrapped: bool) -> list[Any]:
    """Return the rows of a parsed file: the items of a list; a table of pandas' `to_json` with any
    `orient` but 'values'; or the items of the only list in an object ('data'), if it may be
    `wrapped` in one (an object on a single line is a row)."""
    if is_squad(value):
        return list(flatten_squad(value))
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return [_split_row(value["columns"], row) for row in value["data"]]
    inner = list(value.values())
    if inner and all(isinstance(each, dict) for each in inner):
        return _rows_of_objects(value)
    lists = [each for each in inner if isinstance(each, list)]
    wrapped |= value.keys() == {"schema", "data"}  # orient='table'
    return lists[0] if wrapped and len(lists) == 1 else [value]


def _split_row(columns: list[Any], row: Any) -> Any:
    """Return a row of orient='split'."""
    if isinstance(row, list) and len(row) == len(columns):
        return dict(zip(map(str, columns), row, strict=True))
    return row


def _rows_of_objects(value: dict[str, dict[str, Any]]) -> list[Any]:
    """Return the rows of orient='columns' ({column: {index: cell}}) or 'index' ({index: row}) if
    the indices are numbers; otherwise the object itself as the only row."""
    first = next(iter(value.values()))
    if _is_index(value):
        return list(value.values())
    if _is_index(first) and all(each.keys() == first.keys() for each in value.values()):
        return [{column: cells[index] for column, cells in value.items()} for index in first]
    return [value]


def _is_index(keys: Mapping[str, Any]) -> bool:
    """Return whether the keys are row numbers."""
    return bool(keys) and all(key.isascii() and key.isdigit() for key in keys)
