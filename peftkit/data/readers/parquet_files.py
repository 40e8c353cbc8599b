"""Files of parquet: their rows, columns and the names of their classes."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from peftkit.data.readers.lines import Flaw, Record
from peftkit.data.readers.values import Written

_BATCH = 1000


def parquet_rows(path: Path, wanted: Collection[str] | None) -> Iterator[Record | Flaw]:
    """The rows with their `wanted` columns, class ids as names."""
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                yield Flaw("its schema", "names a column twice - rename or remove one")
                return
            columns = [name for name in names if wanted is None or name in wanted]
            features, narrow = _features(path), _narrow(file.schema_arrow)
            ragged = _ragged(file.schema_arrow)
            index = 0
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                for values in _values(batch):
                    if isinstance(values, dict):
                        for name in narrow & values.keys():
                            values[name] = narrowed(values[name], file.schema_arrow.field(name))
                        values |= {
                            name: without_absent(values[name]) for name in ragged & values.keys()
                        }
                        row = {name: _decoded(values[name], features.get(name)) for name in columns}
                        yield Record(f"row {index}", row)
                    else:
                        yield Flaw(f"row {index}", values)
                    index += 1
    except (ArrowException, OSError) as error:
        yield Flaw("its bytes", f"are not parquet ({error}) - fetch or write it again")


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns; none of what is no parquet."""
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        return list(pq.read_schema(path).names)
    except (ArrowException, OSError):
        return []  # `parquet_rows` says what is wrong with it


def class_names(path: Path) -> dict[str, list[str]]:
    """The names of the classes, in id order, of the columns of classes."""
    declared = {column: _names_in(feature) for column, feature in _features(path).items()}
    return {column: names for column, names in declared.items() if names}


def _values(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; in place of one that is broken, why it cannot be read."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except (UnicodeDecodeError, KeyError) as error:
        if batch.num_rows == 1:
            yield _why_not(error)
            return
    for index in range(batch.num_rows):
        yield from _values(batch.slice(index, 1))


def _why_not(error: UnicodeDecodeError | KeyError) -> str:
    if isinstance(error, KeyError):
        return f"holds a map with a key twice ({error.args[0]}) - rename or remove one"
    return f"holds text that is not UTF-8 (byte 0x{error.object[error.start]:02x}) - mend it"


def _features(path: Path) -> dict[str, Any]:
    """The feature types that `datasets` wrote into the file's schema, read without importing it."""
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (ArrowException, OSError):
        return {}
    declared = json.loads(metadata.get(b"huggingface", b"{}"))
    features = declared.get("info", {}).get("features")
    return features if isinstance(features, dict) else {}


def _narrow(schema: Any) -> set[str]:
    """The columns of 16 and 32 bits a number."""
    from pyarrow import types

    return {f.name for f in schema if types.is_float16(f.type) or types.is_float32(f.type)}


def _ragged(schema: Any) -> set[str]:
    """The columns of lists of objects that hold objects, as calls of tools with their arguments."""
    from pyarrow import types

    def holds_objects(kind: Any) -> bool:
        inner = [kind.field(i).type for i in range(kind.num_fields)]
        return any(types.is_struct(each) or holds_objects(each) for each in inner)

    lists = [field for field in schema if types.is_list(field.type)]
    return {f.name for f in lists if holds_objects(f.type.value_type)}


def without_absent(value: Any) -> Any:
    """A nested value without the keys that have none: Arrow gives each object the keys of all."""
    if isinstance(value, dict):
        return {key: without_absent(v) for key, v in value.items() if v is not None}
    return list(map(without_absent, value)) if isinstance(value, list) else value


def narrowed(value: float | None, column: Any) -> float | None:
    """A number of few bits, which is written in as few digits as tell it from its neighbors."""
    import numpy as np

    if value is None:
        return None
    narrow = np.float16 if column.type.bit_width == 16 else np.float32
    return Written(str(narrow(value)), float(value))


def _names_in(feature: Any) -> list[str]:
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        return list(feature.get("names") or [])
    return _names_in(feature.get("feature"))


def _decoded(value: Any, feature: Any) -> Any:
    """Class ids as their names, also within lists; the hub's id -1 says that there is no label."""
    names = _names_in(feature)
    if not names or value is None:
        return value
    if isinstance(value, list):
        return [_decoded(inner, feature["feature"]) for inner in value]
    return names[value] if 0 <= value < len(names) else None
