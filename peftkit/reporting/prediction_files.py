"""Prediction files: what a run said of each test row, as a table; damage is told in words."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

NAMED = ("label", "predicted")
"""What lines hold of a task that gives each row one label's name."""
COLUMNS = ("row", "hash", *NAMED)
BLOCK = 1 << 24
"""Bytes that are parsed at once."""


def read_predictions(
    folder: Path, probabilities: bool, keys: tuple[str, ...] | None = None
) -> tuple[pyarrow.Table | None, str]:
    """The predictions beside a record, plain or compressed, and what is wrong with them.

    They hold row, hash and a task's `keys`; without these label and predicted class, and
    probabilities where those are asked for.
    """
    import pyarrow

    plain, packed = folder / "predictions.jsonl", folder / "predictions.jsonl.gz"
    if not plain.is_file() and not packed.is_file():
        return None, "it has no predictions"
    content = plain.read_bytes() if plain.is_file() else unpacked(packed.read_bytes())
    if content is None:
        return None, "its predictions cannot be read (they are damaged, or not gzip)"
    whole = content[: content.rfind(b"\n") + 1]
    try:
        table = cut_table(whole) if keys is None and not probabilities else None
        table = parsed_table(whole, probabilities, keys) if table is None else table
    except pyarrow.ArrowInvalid as error:
        return None, f"its predictions cannot be read ({str(error).partition(chr(10))[0]})"
    needed = ["row", "hash", *(key for key in keys or NAMED if key != "label")]
    if any(name not in table.column_names or table[name].null_count for name in needed):
        *first, last = needed
        return None, f"its predictions lack {', '.join(first)} or {last} in some lines"
    if len(table["row"].unique()) < len(table):
        return None, "a row stands twice in its predictions"
    return table, "" if len(whole) == len(content) else "its predictions are cut short"


def unpacked(content: bytes) -> bytes | None:
    """What is whole in a gzip file, which may be cut short; None where it is damaged otherwise."""
    reader = zlib.decompressobj(wbits=31)
    try:
        return reader.decompress(content)
    except zlib.error:
        return None


def parsed_table(
    lines: bytes, probabilities: bool, keys: tuple[str, ...] | None = None
) -> pyarrow.Table:
    """The columns of JSON lines; of what type a task's own are, the lines say."""
    import pyarrow
    from pyarrow import json

    named, own = (COLUMNS, ()) if keys is None else (COLUMNS[:2], keys)
    fields = [(name, pyarrow.string()) for name in named]
    numbers = ["counts"] * ("counts" in own) + ["probabilities"] * probabilities
    fields += [(name, pyarrow.list_(pyarrow.float64())) for name in numbers]
    known = [name for name, _ in fields]
    table = json.read_json(
        pyarrow.BufferReader(lines),
        json.ReadOptions(use_threads=False, block_size=BLOCK),
        json.ParseOptions(
            explicit_schema=pyarrow.schema(fields),
            unexpected_field_behavior="infer" if set(own) - set(known) else "ignore",
        ),
    )
    kept = dict.fromkeys((*known, *own))
    return table.select([name for name in kept if name in table.column_names])


def cut_table(lines: bytes) -> pyarrow.Table | None:
    """The columns of JSON lines as runs write them, cut at their quotes, which takes half the time
    of parsing them; None where some line is not of that kind.

    Without a backslash every quote is a string's end, so that equal keys at equal places in lines
    of as many strings say what stands between them.
    """
    import pyarrow
    from pyarrow import csv

    if b"\\" in lines:
        return None
    parts = [str(place) for place in range(4 * len(COLUMNS) + 3)]  # key, colon, value, comma; ...
    keys, values = parts[1:-2:4], parts[3:-2:4]
    few = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    types = {**dict.fromkeys(keys, few), **dict.fromkeys(values, pyarrow.string())}
    try:
        table = csv.read_csv(
            pyarrow.BufferReader(lines),
            csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=parts),
            csv.ParseOptions(delimiter='"', quote_char=False, double_quote=False),
            csv.ConvertOptions(
                include_columns=[*keys, *values], column_types=types, strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowInvalid:
        return None  # lines of another kind, or damaged: parsing them tells
    if any(table[key].unique().to_pylist() != [n] for key, n in zip(keys, COLUMNS, strict=True)):
        return None
    return pyarrow.table(dict(zip(COLUMNS, (table[value] for value in values), strict=True)))
