"""Construction of `datasets.Dataset`s from data files, with one column per role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.data.cells import LIST_CELLS, parse_list, read_cell
from peftkit.data.column_types import (
    ColumnType,
    find_mixed_lists,
    infer_column_type,
    integer_label_roles,
    note_single_items,
)
from peftkit.data.layout import Layout
from peftkit.data.nested_column import nested_column
from peftkit.data.validation import (
    FileScan,
    RequestedColumn,
    find_cell_faults,
    find_faults,
    note_dropped_rows,
    scan_file,
)
from peftkit.errors import DataError, Fault
from peftkit.readers.base import reader_for
from peftkit.readers.lines import Flaw
from peftkit.readers.values import strip_zero_fraction, to_text

if TYPE_CHECKING:
    import datasets

_FORMAT = 3  # increase it when `_generate_rows` gives other rows for the same files
UsedRoles = Callable[[Collection[str]], Collection[str]]
"""Returns which of the roles that are present a task uses."""


@dataclass(frozen=True)
class FileSplits:
    """The splits as they are in the files, before sampling and deduplication."""

    splits: dict[str, datasets.Dataset]
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowBuilder:
    """Converts records to rows, with types inferred over all files; hashable, for the cache."""

    wanted: tuple[RequestedColumn, ...]
    """The columns that exist."""
    kinds: dict[str, ColumnType]
    """Column type by role."""
    whole: tuple[str, ...]
    """Roles whose numbers are all integers: 1.0 is the label 1."""
    renamed: dict[str, str]
    """Label in the file to its name."""
    without_empty: bool = False
    """Whether rows without a required value are removed."""

    def build(self, name: str, values: Any) -> dict[str, Any] | None:
        """Return a row: its name, and a value per role; None for a row to remove."""
        cells = {want.role: read_cell(values.get(want.column), want.cell) for want in self.wanted}
        if self.without_empty and any(
            w.must_be_filled and w.is_empty(cells[w.role]) for w in self.wanted
        ):
            return None
        return {"row": name, **{role: self._value(role, cell) for role, cell in cells.items()}}

    def _value(self, role: str, cell: Any) -> Any:
        kind = self.kinds[role]
        if cell is None or kind == "nested":
            return cell
        if kind == "float":
            return float(cell)
        if kind == "words":
            items = cell if isinstance(cell, list) else parse_list(cell) or cell.split()
        elif kind == "labels":
            items = cell if isinstance(cell, list) else parse_list(cell) or parse_single_label(cell)
        else:
            items = [to_text(cell)]
        if role in self.whole:
            items = [strip_zero_fraction(item) for item in items]
        if role == "label" and kind == "text":
            items = [self.renamed.get(item, item) for item in items]
        return items if kind in LIST_CELLS else items[0]


def parse_single_label(text: str) -> list[str]:
    """Return a text in a column of lists as a list of one label, empty if blank."""
    return [text.strip()] if text.strip() else []


def build_splits(
    layout: Layout,
    wanted: list[RequestedColumn],
    labels: list[str] | None,
    identity: str,
    without_empty: bool = False,
    used: UsedRoles | None = None,
) -> FileSplits:
    """Return the splits of `layout` with one column per role, with `without_empty` without
    incomplete rows.

    Raises one `DataError` with all problems of all files.
    """
    surveys = _scan_files(layout, wanted)
    notes = [*layout.notes, *_drop_unlabeled_splits(surveys, wanted)]
    everything = [s for group in surveys.values() for s in group]
    wanted, unread = _drop_unreadable(everything, wanted, used)
    settled = {want.role: infer_column_type(everything, want) for want in wanted}
    faults = [f for s in everything for f in find_faults(s, wanted, without_empty)]
    faults += [f for want in wanted for f in find_mixed_lists(everything, want, settled[want.role])]
    notes += [*unread, *(note for want in wanted for note in note_single_items(everything, want))]
    if without_empty:
        notes += [note for s in everything for note in note_dropped_rows(s, wanted)]
    names, clash = _label_names(everything, wanted, labels)
    if faults or clash:
        raise DataError(f"the data in {layout.base} cannot be used:", [*faults, *clash])
    there = {column for s in everything for column in s.columns}
    whole = integer_label_roles(everything, wanted)
    builder = RowBuilder(
        wanted=tuple(want for want in wanted if want.column in there),
        kinds=settled,
        whole=whole,
        renamed=_map_labels(everything, labels, "label" in whole),
        without_empty=without_empty,
    )
    splits = {split: _build_dataset(layout, split, builder, identity) for split in surveys}
    return FileSplits(splits, names, tuple(notes))


def _drop_unreadable(
    surveys: list[FileScan], wanted: list[RequestedColumn], used: UsedRoles | None
) -> tuple[list[RequestedColumn], list[str]]:
    """Return the columns without unreadable ones that the task does not need, and notes on
    these."""
    if used is None:
        return wanted, []
    there = {column for s in surveys for column in s.columns}
    of_use = used([want.role for want in wanted if want.column in there])
    kept, notes = [], []
    for want in wanted:
        wrong = [fault for s in surveys for fault in find_cell_faults(s, want)]
        if want.needed or want.role in of_use or not wrong:
            kept.append(want)
        else:
            notes += [f"ignored, since the task does not need it: {fault}" for fault in wrong]
    return kept, notes


def _scan_files(layout: Layout, wanted: list[RequestedColumn]) -> dict[str, list[FileScan]]:
    return {
        split: [scan_file(path, layout.name(path), wanted) for path in files]
        for split, files in layout.files.items()
    }


def _drop_unlabeled_splits(
    surveys: dict[str, list[FileScan]], wanted: list[RequestedColumn]
) -> list[str]:
    """Remove validation and test splits without labels (as GLUE's test), and return notes on
    them."""
    needs_labels = any(want.role == "label" and want.needed for want in wanted)
    notes = []
    for split in ("validation", "test"):
        found = surveys.get(split, [])
        if needs_labels and found and all(s.unlabeled for s in found):
            notes.append(f"the {split} split has no labels and is ignored")
            del surveys[split]
    return notes


def _label_names(
    surveys: list[FileScan], wanted: list[RequestedColumn], labels: list[str] | None
) -> tuple[tuple[str, ...] | None, list[Fault]]:
    """Return the class names in id order, from `labels` or from the files' schema."""
    declared = [names for s in surveys if (names := _declared_names(s, wanted))]
    for names in declared:
        if labels is not None and set(names) != set(labels):
            what = f"is {', '.join(labels)}, but the files have {', '.join(names)} - remove it"
            return None, [Fault("data.labels", what)]
    if labels is not None:
        return tuple(labels), []
    if any(names != declared[0] for names in declared):
        lists = " / ".join(sorted({", ".join(names) for names in declared}))
        return None, [Fault("label", f"the files number their classes differently ({lists})")]
    return (tuple(declared[0]) if declared else None), []


def _declared_names(found: FileScan, wanted: list[RequestedColumn]) -> list[str] | None:
    """Return the class names of the label, or of the first role with any."""
    roles = {want.role: found.class_names.get(want.column) for want in wanted}
    return roles.get("label") or next((names for names in roles.values() if names), None)


def _map_labels(surveys: list[FileScan], labels: list[str] | None, whole: bool) -> dict[str, str]:
    """Return ids to names, if `labels` are given and the files contain only their indices; or
    booleans to names that differ in case."""
    seen = {label for s in surveys if "label" in s.roles for label in s.roles["label"].labels}
    seen = {strip_zero_fraction(label) if whole else label for label in seen}
    ids = {str(index): name for index, name in enumerate(labels or [])}
    truths = {n.lower(): n for n in labels or [] if n.lower() in ("true", "false")}
    for names in (ids, truths):
        if names and seen <= names.keys() and not seen <= set(labels or []):
            return names
    return {}


def _build_dataset(
    layout: Layout, split: str, builder: RowBuilder, identity: str
) -> datasets.Dataset:
    """Return one split, cached by `datasets` by content and settings."""
    from datasets import Dataset

    files = [(layout.name(path), str(path)) for path in layout.files[split]]
    versions = [reader_for(path).version for path in layout.files[split]]
    parts = [_FORMAT, identity, split, [n for n, _ in files], versions, asdict(builder)]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return Dataset.from_generator(
        _generate_rows,
        features=_features(builder),
        gen_kwargs={"files": files, "builder": builder},
        fingerprint=fingerprint,
    )


def _generate_rows(files: list[tuple[str, str]], builder: RowBuilder) -> Iterator[dict[str, Any]]:
    columns = [want.column for want in builder.wanted]
    for name, path in files:
        for index, record in enumerate(reader_for(Path(path)).records(Path(path), columns)):
            if isinstance(record, Flaw):
                raise DataError(
                    f"{name}, {record.place}: changed while it was being read - run again"
                )
            row = builder.build(f"{name}:{index}", record.values)
            if row is not None:
                yield row


def _features(builder: RowBuilder) -> datasets.Features:
    """Return the column types."""
    from datasets import Features, List, Value

    types: dict[ColumnType, Any] = {
        "text": Value("string"),
        "float": Value("float64"),
        "words": List(Value("string")),
        "labels": List(Value("string")),
        "nested": nested_column(),
    }
    kinds = {want.role: types[builder.kinds[want.role]] for want in builder.wanted}
    return Features({"row": Value("string"), **kinds})
