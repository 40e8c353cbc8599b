"""Reading: data files as `datasets.Dataset`s with a column a role, held on disk by Arrow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.data.formats import Flaw, records
from peftkit.data.layout import Layout
from peftkit.data.preflight import Survey, Wanted, faults_of, left_out_of, survey
from peftkit.errors import DataError, Fault

if TYPE_CHECKING:
    import datasets

STRINGS = ("text", "text_pair", "label", "group")
"""Roles that are read as text, whatever their column holds."""
_FORMAT = 1  # of the rows in the cache: count up when `_rows` gives other rows for the same files


@dataclass(frozen=True)
class Found:
    """The splits as they stand in the files, before any is carved, limited or dropped."""

    splits: dict[str, datasets.Dataset]
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How rows are made of records: hashable by its parts, so that the cache knows it again."""

    columns: dict[str, str]
    """Role -> column."""
    fractional: bool
    renamed: dict[str, str]
    """Label in the file -> its name."""
    must_say: tuple[Wanted, ...] = ()
    """Columns of which a row that lacks any is left out."""

    def keeps(self, values: Any) -> bool:
        """Whether a row is read."""
        return not any(want.lacks(values.get(want.column)) for want in self.must_say)

    def row(self, name: str, values: Any) -> dict[str, Any]:
        """One row: its stable name, and a value a role."""
        roles = {role: self._value(role, values.get(col)) for role, col in self.columns.items()}
        return {"row": name, **roles}

    def _value(self, role: str, value: Any) -> Any:
        if value is None or role not in STRINGS:
            return value
        if role == "label":
            if isinstance(value, (list, tuple)):
                return [str(each) for each in value]
            return float(value) if self.fractional else self.renamed.get(str(value), str(value))
        return str(value)


def read(
    layout: Layout,
    wanted: list[Wanted],
    labels: list[str] | None,
    identity: str,
    without_empty: bool = False,
) -> Found:
    """The splits of `layout` with a column a role; `without_empty` rows that lack what is needed.

    Raises one `DataError` with all faults of all files.
    """
    surveys = _surveyed(layout, wanted)
    notes = [*layout.notes, *_without_labels(surveys, wanted)]
    everything = [s for group in surveys.values() for s in group]
    faults = [f for s in everything for f in faults_of(s, wanted, without_empty)]
    if without_empty:
        notes += [note for s in everything for note in left_out_of(s, wanted)]
    names, clash = _label_names(everything, wanted, labels)
    if faults or clash:
        raise DataError(f"the data in {layout.base} cannot be used:", [*faults, *clash])
    there = {column for s in everything for column in s.columns}
    reading = Reading(
        columns={want.role: want.column for want in wanted if want.column in there},
        # with words among them they are read as they stand, for the task to say which
        fractional=any(s.fractional for s in everything) and not any(s.worded for s in everything),
        renamed=_renaming(everything, labels),
        must_say=tuple(want for want in wanted if without_empty and want.must_say),
    )
    splits = {split: _dataset(layout, split, reading, identity) for split in surveys}
    return Found(splits, names, tuple(notes))


def _surveyed(layout: Layout, wanted: list[Wanted]) -> dict[str, list[Survey]]:
    return {
        split: [survey(path, layout.name(path), wanted) for path in files]
        for split, files in layout.files.items()
    }


def _without_labels(surveys: dict[str, list[Survey]], wanted: list[Wanted]) -> list[str]:
    """Take out scored splits that nobody labelled (as GLUE's test), and say so."""
    needs_labels = any(want.role == "label" and want.needed for want in wanted)
    notes = []
    for split in ("validation", "test"):
        found = surveys.get(split, [])
        if needs_labels and found and all(s.unlabelled for s in found):
            notes.append(f"the {split} split has no labels and is left out")
            del surveys[split]
    return notes


def _label_names(
    surveys: list[Survey], wanted: list[Wanted], labels: list[str] | None
) -> tuple[tuple[str, ...] | None, list[Fault]]:
    """The names of the classes in id order: those given, else those in the files' own schema."""
    declared = [names for s in surveys if (names := _declared(s, wanted))]
    for names in declared:
        if labels is not None and set(names) != set(labels):
            what = f"says {', '.join(labels)}, but the files say {', '.join(names)} - remove it"
            return None, [Fault("data.labels", what)]
    if labels is not None:
        return tuple(labels), []
    if any(names != declared[0] for names in declared):
        lists = " / ".join(sorted({", ".join(names) for names in declared}))
        return None, [Fault("label", f"the files number their classes differently ({lists})")]
    return (tuple(declared[0]) if declared else None), []


def _declared(found: Survey, wanted: list[Wanted]) -> list[str] | None:
    """The class names of the label, or of the first role that has any."""
    roles = {want.role: found.class_names.get(want.column) for want in wanted}
    return roles.get("label") or next((names for names in roles.values() if names), None)


def _renaming(surveys: list[Survey], labels: list[str] | None) -> dict[str, str]:
    """Ids to names, where `labels` are given and the files hold nothing but their positions."""
    ids = {str(index): name for index, name in enumerate(labels or [])}
    seen = {label for s in surveys for label in s.labels}
    return ids if ids and seen <= ids.keys() and not seen <= set(labels or []) else {}


def _dataset(layout: Layout, split: str, reading: Reading, identity: str) -> datasets.Dataset:
    """One split, written to the cache of `datasets` once for each content and way of reading."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    files = [(layout.name(path), str(path)) for path in layout.files[split]]
    names = [name for name, _ in files]
    parts = [_FORMAT, identity, split, names, reading.columns, reading.fractional, reading.renamed]
    if reading.must_say:
        parts.append(reading.must_say)
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    try:
        return Dataset.from_generator(
            _rows,
            features=_features(files, reading),
            gen_kwargs={"files": files, "reading": reading},
            fingerprint=fingerprint,
        )
    except DatasetGenerationError as error:
        why = f"{type(error.__cause__).__name__}: {error.__cause__}"
        what = f"a column changes its type on the way ({why}) - give it one type"
        raise DataError(f"{', '.join(names)}: {what}") from error


def _rows(files: list[tuple[str, str]], reading: Reading) -> Iterator[dict[str, Any]]:
    for name, path in files:
        for index, record in enumerate(records(Path(path), reading.columns.values())):
            if isinstance(record, Flaw):
                raise DataError(f"{name}, {record.place}: changed while it was read - run again")
            if reading.keeps(record.values):
                yield reading.row(f"{name}:{index}", record.values)


def _features(files: list[tuple[str, str]], reading: Reading) -> datasets.Features:
    """Text for texts and labels; for other roles what their first thousand values are."""
    import pyarrow as pa
    from datasets import Features, List, Value
    from datasets.features.features import generate_from_arrow_type

    sample = list(islice(_rows(files, reading), 1000))
    kinds: dict[str, Any] = {"row": Value("string")}
    for role in reading.columns:
        inferred = pa.infer_type([row[role] for row in sample])
        fixed = "float64" if role == "label" and reading.fractional else "string"
        plain = role in STRINGS or pa.types.is_null(inferred)
        kinds[role] = Value(fixed) if plain else generate_from_arrow_type(inferred)
        if role == "label" and pa.types.is_list(inferred):
            kinds[role] = List(Value("string"))
    return Features(kinds)
