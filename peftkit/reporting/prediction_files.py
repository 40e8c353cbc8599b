"""Prediction files: what a run said of each test row, as a table; damage is told in words."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("row", "hash", "label", "predicted")


def read_predictions(folder: Path, probabilities: bool) -> tuple[pyarrow.Table | None, str]:
    """The predictions beside a record, plain or compressed, and what is wrong with them.

    They hold row, hash, label and predicted class, and probabilities where those are asked for.
    """
    import pyarrow
    from pyarrow import json as arrow_json

    plain, packed = folder / "predictions.jsonl", folder / "predictions.jsonl.gz"
    if not plain.is_file() and not packed.is_file():
        return None, "it has no predictions"
    content = plain.read_bytes() if plain.is_file() else unpacked(packed.read_bytes())
    whole = content[: content.rfind(b"\n") + 1]
    fields = [(name, pyarrow.string()) for name in COLUMNS]
    if probabilities:
        fields.append(("probabilities", pyarrow.list_(pyarrow.float64())))
    schema = pyarrow.schema(fields)
    try:
        table = arrow_json.read_json(
            pyarrow.BufferReader(whole),
            arrow_json.ReadOptions(use_threads=False, block_size=1 << 24),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pyarrow.ArrowInvalid as error:
        return None, f"its predictions cannot be read ({str(error).partition(chr(10))[0]})"
    if any(table[name].null_count for name in ("row", "hash", "predicted")):
        return None, "its predictions lack row, hash or predicted in some lines"
    if len(table["row"].unique()) < len(table):
        return None, "a row stands twice in its predictions"
    return table, "" if len(whole) == len(content) else "its predictions are cut short"


def unpacked(content: bytes) -> bytes:
    """What is whole in a gzip file, which may be cut short."""
    reader = zlib.decompressobj(wbits=31)
    try:
        return reader.decompress(content)
    except zlib.error:
        return b"?"  # not gzip: told as a last line without its end
