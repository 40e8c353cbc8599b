"""Files of json: an object a line, a list of objects, or a table as pandas writes it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftkit.data.readers.lines import Flaw, Lines, Record
from peftkit.data.readers.squad_json import flattened, is_nested
from peftkit.data.readers.values import Written


def json_lines(path: Path) -> Iterator[Record | Flaw]:
    """The rows of a file with an object a line."""
    lines = Lines(path)
    for number, line in enumerate(lines, 1):
        yield from lines.new_flaws()
        if line.strip():
            yield record_of(parsed(line, f"line {number}"), f"line {number}")


def json_rows(path: Path) -> Iterator[Record | Flaw]:
    """The rows of a file with an object a line, or of one that is json as a whole."""
    if is_lines(path):
        yield from json_lines(path)
        return
    lines = Lines(path)
    text = "".join(lines)
    yield from lines.new_flaws()
    value = parsed(text, "") if text.strip() else []
    if isinstance(value, Flaw):
        yield value
        return
    rows = rows_in(value, wrapped="\n" in text.strip())
    yield from (record_of(row, f"row {index}") for index, row in enumerate(rows))


def is_lines(path: Path) -> bool:
    """Whether the first of several lines is an object by itself."""
    filled = (line for line in Lines(path) if line.strip())
    first, second = next(filled, "").strip(), next(filled, None)
    if second is None or not first.startswith("{"):
        return False
    return isinstance(parsed(first, ""), dict)


def parsed(text: str, place: str) -> Any:
    """A text of json; or a flaw, at `place` or at the line where it is."""
    try:
        return json.loads(text, parse_float=Written, parse_constant=Written)
    except json.JSONDecodeError as error:
        what = f"is not json ({error.msg}) - mend or remove it"
        return Flaw(place or f"line {error.lineno}", what)
    except RecursionError:
        return Flaw(place or "row 0", "is nested too deeply to be read - mend or remove it")
    except ValueError:  # Python's limit of digits
        return Flaw(place or "row 0", "holds a number of thousands of digits - write it as text")


def record_of(value: object, place: str) -> Record | Flaw:
    """One row, of what was parsed."""
    if isinstance(value, Flaw):
        return value
    if isinstance(value, dict):
        return Record(place, value)
    return Flaw(place, "is no object ({...}) - write one object with its columns as keys")


def rows_in(value: Any, wrapped: bool) -> list[Any]:
    """The rows of a parsed file: a list, or what pandas' `to_json` makes of a table by any `orient`
    but 'values'; or the one list that an object holds ('data'), if it may be `wrapped` in one: on a
    line by itself an object is a row."""
    if is_nested(value):
        return list(flattened(value))
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return [split_row(value["columns"], row) for row in value["data"]]
    inner = list(value.values())
    if inner and all(isinstance(each, dict) for each in inner):
        return rows_of_objects(value)
    lists = [each for each in inner if isinstance(each, list)]
    wrapped |= value.keys() == {"schema", "data"}  # orient='table'
    return lists[0] if wrapped and len(lists) == 1 else [value]


def split_row(columns: list[Any], row: Any) -> Any:
    """One row of orient='split'."""
    if isinstance(row, list) and len(row) == len(columns):
        return dict(zip(map(str, columns), row, strict=True))
    return row


def rows_of_objects(value: dict[str, dict[str, Any]]) -> list[Any]:
    """The rows of orient='columns' ({column: {index: cell}}) or 'index' ({index: row}), whose
    indices are numbers; else the object is a row itself."""
    first = next(iter(value.values()))
    if is_index(value):
        return list(value.values())
    if is_index(first) and all(each.keys() == first.keys() for each in value.values()):
        return [{column: cells[index] for column, cells in value.items()} for index in first]
    return [value]


def is_index(keys: Mapping[str, Any]) -> bool:
    """Whether the keys are row numbers."""
    return bool(keys) and all(key.isascii() and key.isdigit() for key in keys)
