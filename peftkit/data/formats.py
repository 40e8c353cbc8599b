"""Data files, one record at a time: csv, tsv, json, jsonl and parquet, streamed from disk."""

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peftkit.data.nested import flattened, is_nested

COLUMNS_OF_WORDS = (".conll", ".conllu", ".iob", ".iob2", ".bio")
"""Endings of files with a word a line (see `peftkit.data.conll`)."""


class Record(NamedTuple):
    """One row of a file."""

    place: str
    """Where it stands: 'line 7' of a text file, 'row 6' of a parquet file."""
    values: Mapping[str, Any]


class Flaw(NamedTuple):
    """A place in a file that cannot be read."""

    place: str
    what: str


class _Lines:
    """The lines of a file as text; where bytes are not UTF-8, a flaw is kept and '�' stands in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flaws: list[Flaw] = []

    def __iter__(self) -> Iterator[str]:
        encoding = "utf-8-sig"  # only the first line may begin with a byte-order mark
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode(encoding)
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]
                    what = f"is not UTF-8 (byte 0x{byte:02x}) - save the file as UTF-8"
                    self.flaws.append(Flaw(f"line {number}", what))
                    yield line.decode(encoding, errors="replace")
                encoding = "utf-8"

    def new_flaws(self) -> list[Flaw]:
        flaws, self.flaws = self.flaws, []
        return flaws


def records(path: Path, wanted: Collection[str] | None = None) -> Iterator[Record | Flaw]:
    """The rows of `path`, and the places that cannot be read; of parquet only `wanted` columns."""
    readers = {".csv": _csv, ".tsv": _tsv, ".jsonl": _json_lines, ".json": _json}
    suffix = path.suffix.lower()
    if suffix in COLUMNS_OF_WORDS:
        return _words_in_lines(path)
    return _parquet(path, wanted) if suffix == ".parquet" else readers[suffix](path)


def columns_of(path: Path) -> list[str]:
    """The columns that the file itself declares; none for json, whose rows each name their own."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_columns(path)
    if suffix in {".csv", ".tsv"}:
        first = next(iter(_Lines(path)), "")
        row = _fields(first) if suffix == ".tsv" else next(csv.reader([first]), [])
        return list(row)
    return []


def class_names(path: Path) -> dict[str, list[str]]:
    """The names of the classes, in id order, of the columns of classes in a parquet file."""
    if path.suffix.lower() != ".parquet":
        return {}
    declared = {column: _names_in(feature) for column, feature in _features(path).items()}
    return {column: names for column, names in declared.items() if names}


def _csv(path: Path) -> Iterator[Record | Flaw]:
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the module's 131072 characters
    lines = _Lines(path)
    reader = csv.reader(lines, strict=True)
    try:
        yield from _table(lines, reader)
    except csv.Error as error:
        yield Flaw(f"line {reader.line_num}", f"is not readable as csv ({error}) - mend its quotes")


def _tsv(path: Path) -> Iterator[Record | Flaw]:
    """Quotes are plain characters in tsv (as csv.QUOTE_NONE): texts hold unpaired ones."""
    lines = _Lines(path)
    yield from _table(lines, (_fields(line) for line in lines))


def _fields(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    return line.split("\t") if line else []


def _table(lines: _Lines, rows: Iterator[list[str]]) -> Iterator[Record | Flaw]:
    header: list[str] = next(rows, [])
    if len(set(header)) < len(header):
        yield Flaw("line 1", "names a column twice - rename or remove one")
    for number, row in enumerate(rows, 2):
        yield from lines.new_flaws()
        # a quoted text may span lines: the reader knows the line where its row ends
        place = f"line {getattr(rows, 'line_num', number)}"
        if len(row) == len(header):
            yield Record(place, dict(zip(header, row, strict=True)))
        elif row:
            what = f"has {len(row)} fields, but the header has {len(header)}"
            yield Flaw(place, f"{what} - quote or escape it")
    yield from lines.new_flaws()


def _json_lines(path: Path) -> Iterator[Record | Flaw]:
    lines = _Lines(path)
    for number, line in enumerate(lines, 1):
        yield from lines.new_flaws()
        if line.strip():
            yield _parsed(line, f"line {number}")


def _parsed(line: str, place: str) -> Record | Flaw:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return Flaw(place, f"is not json ({error.msg}) - mend or remove it")
    return _record(value, place)


def _record(value: object, place: str) -> Record | Flaw:
    if isinstance(value, dict):
        return Record(place, value)
    return Flaw(place, "is no object ({...}) - write one object with its columns as keys")


def _json(path: Path) -> Iterator[Record | Flaw]:
    """Either one list of objects, or an object a line."""
    first = next((line.strip() for line in _Lines(path) if line.strip()), "")
    if not first.startswith("["):
        whole = _parsed(first, "")
        if isinstance(whole, Record) and not is_nested(whole.values):
            yield from _json_lines(path)
            return
    lines = _Lines(path)
    text = "".join(lines)
    yield from lines.new_flaws()
    try:
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        yield Flaw(f"line {error.lineno}", f"is not json ({error.msg}) - mend it")
        return
    yield from (_record(row, f"row {index}") for index, row in enumerate(_rows_in(value)))


def _rows_in(value: object) -> list[object]:
    """The rows of a parsed json file: a list, or the one list that an object holds ('data')."""
    if is_nested(value):
        return list(flattened(value))
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        return lists[0] if len(lists) == 1 else [value]
    return value if isinstance(value, list) else [value]


def _words_in_lines(path: Path) -> Iterator[Record | Flaw]:
    """A word a line with its tags, as CoNLL's shared tasks give them."""
    from peftkit.data.conll import sentences

    lines = _Lines(path)
    for sentence in sentences(lines, universal=path.suffix.lower() == ".conllu"):
        yield from lines.new_flaws()
        yield sentence
    yield from lines.new_flaws()


def _parquet(path: Path, wanted: Collection[str] | None) -> Iterator[Record | Flaw]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if wanted is None or name in wanted]
            features = _features(path)
            index = 0
            for batch in file.iter_batches(batch_size=1000, columns=columns):
                for row in batch.to_pylist():
                    values = {name: _decoded(row[name], features.get(name)) for name in columns}
                    yield Record(f"row {index}", values)
                    index += 1
    except (ArrowException, OSError) as error:
        yield Flaw("its bytes", f"are not parquet ({error}) - fetch or write it again")


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        return list(pq.read_schema(path).names)
    except (ArrowException, OSError):
        return []  # `records` says what is wrong with it


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
