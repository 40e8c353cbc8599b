"""Reader of Parquet files, with the class names that `datasets` stores in their schema."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from peftkit.readers.base import DataReader
from peftkit.readers.lines import Flaw, Record
from peftkit.readers.values import LiteralFloat

_BATCH = 1000


class ParquetReader(DataReader):
    """Parquet; class ids are returned as class names."""

    suffixes = (".parquet",)

    def records(self, path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
        """Yield the rows with their `wanted` columns."""
        import pyarrow.parquet as pq
        from pyarrow.lib import ArrowException

        try:
            with pq.ParquetFile(path) as file:
                yield from _read_rows(file, _features(path), wanted)
        except (ArrowException, OSError) as error:
            yield Flaw("its bytes", f"are not parquet ({error}) - fetch or write it again")

    def columns(self, path: Path) -> list[str]:
        """Return the columns of the schema; none if the file is not Parquet."""
        schema = _read_schema(path)
        return [] if schema is None else list(schema.names)

    def class_names(self, path: Path) -> dict[str, list[str]]:
        """Return the class names of `ClassLabel` columns, in id order."""
        declared = {column: _names_in(feature) for column, feature in _features(path).items()}
        return {column: names for column, names in declared.items() if names}


def _read_rows(
    file: Any, features: dict[str, Any], wanted: Collection[str] | None
) -> Iterator[Record | Flaw]:
    schema = file.schema_arrow
    if len(set(schema.names)) < len(schema.names):
        yield Flaw("its schema", "names a column twice - rename or remove one")
        return
    columns = [name for name in schema.names if wanted is None or name in wanted]
    narrow, nested = _narrow_columns(schema), _nested_columns(schema)
    batches = file.iter_batches(batch_size=_BATCH, columns=columns)
    for index, values in enumerate(row for batch in batches for row in _batch_rows(batch)):
        if isinstance(values, str):
            yield Flaw(f"row {index}", values)
            continue
        for name in narrow & values.keys():
            values[name] = shorten_float(values[name], schema.field(name))
        values |= {name: drop_nulls(values[name]) for name in nested & values.keys()}
        row = {name: _decode_classes(values[name], features.get(name)) for name in columns}
        yield Record(f"row {index}", row)


def _read_schema(path: Path) -> Any:
    """Return the Arrow schema; None if the file is not Parquet, which `records` reports."""
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        return pq.read_schema(path)
    except (ArrowException, OSError):
        return None


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a batch; for a broken one, what is wrong with it."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except (UnicodeDecodeError, KeyError) as error:
        if batch.num_rows == 1:
            yield _explain(error)
            return
    for index in range(batch.num_rows):
        yield from _batch_rows(batch.slice(index, 1))


def _explain(error: UnicodeDecodeError | KeyError) -> str:
    if isinstance(error, KeyError):
        return f"has a map with a repeated key ({error.args[0]}) - rename or remove one"
    return f"has text that is not UTF-8 (byte 0x{error.object[error.start]:02x}) - fix it"


def _features(path: Path) -> dict[str, Any]:
    """Return the features that `datasets` wrote into the schema, without importing `datasets`."""
    schema = _read_schema(path)
    metadata = {} if schema is None else schema.metadata or {}
    declared = json.loads(metadata.get(b"huggingface", b"{}"))
    features = declared.get("info", {}).get("features")
    return features if isinstance(features, dict) else {}


def _narrow_columns(schema: Any) -> set[str]:
    """Return the names of the float16 and float32 columns."""
    from pyarrow import types

    return {f.name for f in schema if types.is_float16(f.type) or types.is_float32(f.type)}


def _nested_columns(schema: Any) -> set[str]:
    """Return the names of the columns of lists of structs that contain structs (tool calls)."""
    from pyarrow import types

    def has_structs(kind: Any) -> bool:
        inner = [kind.field(i).type for i in range(kind.num_fields)]
        return any(types.is_struct(each) or has_structs(each) for each in inner)

    lists = [field for field in schema if types.is_list(field.type)]
    return {f.name for f in lists if has_structs(f.type.value_type)}


def drop_nulls(value: Any) -> Any:
    """Return a nested value without null keys: Arrow gives each struct the keys of all."""
    if isinstance(value, dict):
        return {key: drop_nulls(v) for key, v in value.items() if v is not None}
    return list(map(drop_nulls, value)) if isinstance(value, list) else value


def shorten_float(value: float | None, column: Any) -> float | None:
    """Return a float16 or float32 value with the shortest text that identifies it in its type."""
    import numpy as np

    if value is None:
        return None
    narrow = np.float16 if column.type.bit_width == 16 else np.float32
    return LiteralFloat(str(narrow(value)), float(value))


def _names_in(feature: Any) -> list[str]:
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        return list(feature.get("names") or [])
    return _names_in(feature.get("feature"))


def _decode_classes(value: Any, feature: Any) -> Any:
    """Return class names for class ids, also in lists; None for -1, the hub's id for no label."""
    names = _names_in(feature)
    if not names or value is None:
        return value
    if isinstance(value, list):
        return [_decode_classes(inner, feature["feature"]) for inner in value]
    return names[value] if 0 <= value < len(names) else None
