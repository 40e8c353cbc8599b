"""Prediction files: what a run said of each test row, as a table; damage is told in words."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow

NAMED = ("label", "predicted")
"""What lines hold of a task that gives each row one label's name."""
COLUMNS = ("row", "hash", *NAMED)
BLOCK = 1 << 24
"""Bytes that are parsed at once."""


class Known:
    """The lines of a file that was read, up to what they predict: other runs' files on the same
    rows say the same there, and telling so takes half the time of parsing them."""

    def __init__(self) -> None:
        # one value, which threads set at once
        self.first: tuple[list[bytes], int, pyarrow.Table] | None = None

    def learn(self, lines: bytes, table: pyarrow.Table) -> None:
        """Keep the first file's lines, once `cut_table` has found them whole."""
        if self.first is None:
            before = 4 * len(COLUMNS) - 1  # quotes up to the one that opens the last value
            split = lines.split(b"\n")[:-1]
            rest = [len(line.split(b'"', before)[before]) for line in split]
            beginnings = [line[: len(line) - n] for line, n in zip(split, rest, strict=True)]
            self.first = beginnings, quotes_in(lines), table

    def table_of(self, lines: bytes) -> pyarrow.Table | None:
        """The columns of lines that begin as the known ones do; None where they do not."""
        import pyarrow

        if self.first is None:
            return None
        beginnings, quotes, table = self.first
        split = lines.split(b"\n")[:-1]
        alike = len(split) == len(beginnings) and quotes_in(lines) == quotes
        if not alike or b"\\" in lines or not all(map(bytes.startswith, split, beginnings)):
            return None
        starts = map(len, beginnings)
        words = [line[n:].partition(b'"')[0] for line, n in zip(split, starts, strict=True)]
        ends = np.cumsum([0, *map(len, words)], dtype=np.int32)
        buffers = pyarrow.py_buffer(ends), pyarrow.py_buffer(b"".join(words))
        predicted = pyarrow.StringArray.from_buffers(len(words), *buffers)
        predicted.validate(full=True)
        place = COLUMNS.index("predicted")
        return table.set_column(place, "predicted", pyarrow.chunked_array([predicted]))


def quotes_in(lines: bytes) -> int:
    """How many quotes there are; numpy counts them five times as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(lines, np.uint8) == ord('"')))


def read_predictions(
    folder: Path,
    probabilities: bool,
    keys: tuple[str, ...] | None = None,
    known: Known | None = None,
) -> tuple[pyarrow.Table | None, str]:
    """The predictions beside a record, plain or compressed, and what is wrong with them.

    They hold row, hash and a task's `keys`; without these label and predicted class, and
    probabilities where those are asked for.
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
    cut_short = "" if len(whole) == len(content) else "its predictions are cut short"
    known = known or Known()
    try:
        quick = keys is None and not probabilities
        table = known.table_of(whole) if quick else None
        if table is not None:
            return table, cut_short
        cut = cut_table(whole) if quick else None
        table = parsed_table(whole, probabilities, keys) if cut is None else cut
    except pyarrow.ArrowInvalid as error:
        return None, f"its predictions cannot be read ({str(error).partition(chr(10))[0]})"
    trouble = trouble_in(table, keys)
    if trouble:
        return None, trouble
    if cut is not None:
        known.learn(whole, cut)
    return table, cut_short


def trouble_in(table: pyarrow.Table, keys: tuple[str, ...] | None) -> str:
    """Why predictions cannot be compared; empty where they can."""
    needed = ["row", "hash", *(key for key in keys or NAMED if key != "label")]
    if any(name not in table.column_names or table[name].null_count for name in needed):
        *first, last = needed
        return f"its predictions lack {', '.join(first)} or {last} in some lines"
    if len(table["row"].unique()) < len(table):
        return "a row stands twice in its predictions"
    return ""


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
