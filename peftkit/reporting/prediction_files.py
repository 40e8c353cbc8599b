"""Prediction files: what a run said of each test row, as a table; damage is told in words."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("row", "hash", "label", "predicted")
BLOCK = 1 << 24
"""Bytes that are parsed at once."""


def read_predictions(folder: Path, probabilities: bool) -> tuple[pyarrow.Table | None, str]:
    """The predictions beside a record, plain or compressed, and what is wrong with them.

    They hold row, hash, label and predicted class, and probabilities where those are asked for.
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
        table = None if probabilities else cut_table(whole)
        table = parsed_table(whole, probabilities) if table is None else table
    except pyarrow.ArrowInvalid as error:
        return None, f"its predictions cannot be read ({str(error).partition(chr(10))[0]})"
    if any(table[name].null_count for name in ("row", "hash", "predicted")):
        return None, "its predictions lack row, hash or predicted in some lines"
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


def parsed_table(lines: bytes, probabilities: bool) -> pyarrow.Table:
    """The columns of JSON lines."""
    import pyarrow
    from pyarrow import json

    fields = [(name, pyarrow.string()) for name in COLUMNS]
    if probabilities:
        fields.append(("probabilities", pyarrow.list_(pyarrow.float64())))
    return json.read_json(
        pyarrow.BufferReader(lines),
        json.ReadOptions(use_threads=False, block_size=BLOCK),
        json.ParseOptions(
            explicit_schema=pyarrow.schema(fields), unexpected_field_behavior="ignore"
        ),
    )


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
