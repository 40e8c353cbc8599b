"""Reads the predictions that a run wrote for its test rows."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

NAMED = ("label", "predicted")
"""The keys of tasks that predict one label for each row."""
COLUMNS = ("row", "hash", *NAMED)
BLOCK = 1 << 24
"""Bytes that are parsed at once."""


def read_predictions(
    folder: Path, probabilities: bool, keys: tuple[str, ...] | None = None
) -> tuple[pyarrow.Table | None, str]:
    """The predictions in a run's directory, plain or compressed, and what is wrong with them.

    The table has row, hash and a task's `keys`; without these label and predicted class, with
    `probabilities` those too.
    """
    import pyarrow

    plain, packed = folder / "predictions.jsonl", folder / "predictions.jsonl.gz"
    try:
        if not plain.is_file() and not packed.is_file():
            return None, "it has no predictions"
        content = plain.read_bytes() if plain.is_file() else unpacked(packed.read_bytes())
    except OSError as error:
        return None, f"its predictions cannot be read ({error.strerror})"
    if content is None:
        return None, "its predictions cannot be read (they are damaged, or not gzip)"
    whole = content[: content.rfind(b"\n") + 1]
    try:
        table = parse_lines(whole, probabilities, keys)
    except pyarrow.ArrowInvalid as error:
        return None, f"its predictions cannot be read ({str(error).partition(chr(10))[0]})"
    problem = problem_in(table, keys)
    if problem:
        return None, problem
    return table, "" if len(whole) == len(content) else "its predictions are cut short"


def problem_in(table: pyarrow.Table, keys: tuple[str, ...] | None) -> str:
    """Why predictions cannot be compared; empty if they can."""
    needed = ["row", "hash", *(key for key in keys or NAMED if key != "label")]
    if any(name not in table.column_names or table[name].null_count for name in needed):
        *first, last = needed
        return f"its predictions lack {', '.join(first)} or {last} in some lines"
    if len(table["row"].unique()) < len(table):
        return "its predictions have a row twice"
    return ""


def unpacked(content: bytes) -> bytes | None:
    """The content of a gzip file, which may be cut short; None if it is damaged otherwise."""
    reader = zlib.decompressobj(wbits=31)
    try:
        return reader.decompress(content)
    except zlib.error:
        return None


def parse_lines(
    lines: bytes, probabilities: bool, keys: tuple[str, ...] | None = None
) -> pyarrow.Table:
    """The columns of JSON lines; the types of a task's own keys are inferred."""
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
