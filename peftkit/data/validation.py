"""Validation of data files: all problems are found in one pass, before training."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from peftkit.data.cells import CELL_OF_ROLE, LIST_CELLS, Cell, parse_list, read_cell
from peftkit.errors import Fault, nearest
from peftkit.readers.base import reader_for
from peftkit.readers.lines import Flaw
from peftkit.readers.values import CellError, has_fraction, is_number, to_text

_MOST_LABELS = 1000
_TEXT_ROLES = ("text", "text_pair")
_SEVERAL = re.compile(r"[;|,]")


class Role(NamedTuple):
    """What a task requires of a role."""

    needed: bool
    cell: Cell = "text"
    blank: bool = False
    """Whether its cells may be empty, but not missing."""

    def __bool__(self) -> bool:
        return self.needed


Need = bool | Role
"""Whether a task requires a role; its cell type is that of `CELL_OF_ROLE` or of a `Role`."""


def to_role(name: str, need: Need) -> Role:
    """Return the requirements of the role `name`."""
    return need if isinstance(need, Role) else Role(need, CELL_OF_ROLE.get(name, "text"))


class RequestedColumn(NamedTuple):
    """A column to read: for which role, and whether it is required."""

    role: str
    column: str
    needed: bool
    blank: bool = False
    """Whether an empty cell has a meaning: that a text has none of the labels."""
    cell: Cell = "text"
    """The type of its cells."""

    @property
    def setting(self) -> str:
        """The setting with the column's name."""
        own = self.role in {*_TEXT_ROLES, "label", "group"}
        return f"data.{self.role}" if own else f"data.columns.{self.role}"

    def is_empty(self, value: Any) -> bool:
        """Return whether a cell of the column has no value."""
        return is_missing(value) if self.blank else is_empty(value)

    @property
    def must_be_filled(self) -> bool:
        """Whether a row is unusable if the cell has no value."""
        return self.needed or self.role in _TEXT_ROLES


@dataclass
class Occurrences:
    """How often something occurred, and the first places."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count one more, at `place`."""
        self.count += 1
        if len(self.first) < 3:
            self.first.append(place)

    def __str__(self) -> str:
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        return ", ".join(self.first) + more


def count_rows(places: Occurrences) -> str:
    """Return the number of rows and the first of them, for a message."""
    return f"{places.count} {'row' if places.count == 1 else 'rows'} ({places})"


@dataclass
class CellScan:
    """What one file contains of a role."""

    empty: Occurrences = field(default_factory=Occurrences)
    unreadable: dict[tuple[str, str], Occurrences] = field(default_factory=dict)
    """By what is wrong with a cell, and how to fix it."""
    alone: Occurrences = field(default_factory=Occurrences)
    """Lists of one item where one value is expected."""
    lists: int = 0
    """Lists and objects, including empty ones."""
    lists_as_text: int = 0
    texts: int = 0
    """Non-empty text cells that are not lists."""
    several: Occurrences = field(default_factory=Occurrences)
    """Texts that may be several labels."""
    labels: set[str] = field(default_factory=set)
    floats: bool = False
    """Whether any cell is a float."""
    fractions: bool = False
    """Whether any label is a number that is not an integer."""
    worded: bool = False
    """Whether any label is not a number."""

    def add(self, want: RequestedColumn, value: Any, place: str) -> None:
        """Add one more cell."""
        try:
            cell = read_cell(value, want.cell)
        except CellError as error:
            places = self.unreadable.setdefault((error.what, error.fix), Occurrences())
            places.add(f"{place}, {error.part}" if error.part else place)
            return
        self.lists += isinstance(cell, (list, dict))
        if want.is_empty(cell):
            self.empty.add(place)
        elif want.cell in ("label", "number"):
            self._add_label(cell, value, place)
        elif isinstance(cell, (list, dict)):
            self.fractions |= want.cell in LIST_CELLS and any(map(has_fraction, cell))
        elif want.cell in LIST_CELLS and parse_list(cell) is not None:
            self.lists_as_text += 1
        else:
            self.texts += 1
            if want.cell == "labels" and _SEVERAL.search(cell):
                self.several.add(place)

    def _add_label(self, cell: Any, value: Any, place: str) -> None:
        if isinstance(value, (list, tuple)):
            self.alone.add(place)
        self.floats |= isinstance(cell, float)
        self.fractions |= has_fraction(cell)
        self.worded |= not is_number(cell)
        if len(self.labels) < _MOST_LABELS:
            self.labels.add(to_text(cell))


@dataclass
class FileScan:
    """What one pass over a file found."""

    name: str
    num_rows: int = 0
    columns: set[str] = field(default_factory=set)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    flaws: dict[str, Occurrences] = field(default_factory=dict)
    roles: dict[str, CellScan] = field(default_factory=dict)

    @property
    def unlabeled(self) -> bool:
        """Whether the file is readable, but no row has a label."""
        if not self.num_rows or self.flaws:
            return False
        return self.roles["label"].empty.count == self.num_rows


def scan_file(path: Path, name: str, wanted: list[RequestedColumn]) -> FileScan:
    """Read a file once and return what it contains and what is wrong with it."""
    reader = reader_for(path)
    found = FileScan(name, 0, set(reader.columns(path)), reader.class_names(path))
    found.roles = {want.role: CellScan() for want in wanted}
    for record in reader.records(path, [want.column for want in wanted]):
        if isinstance(record, Flaw):
            found.flaws.setdefault(record.what, Occurrences()).add(record.place)
            continue
        found.num_rows += 1
        if not record.values.keys() <= found.columns:
            found.columns |= record.values.keys()
        for want in wanted:
            found.roles[want.role].add(want, record.values.get(want.column), record.place)
    return found


def find_faults(
    found: FileScan, wanted: list[RequestedColumn], without_empty: bool = False
) -> Iterator[Fault]:
    """Yield all problems of one file; incomplete rows only if they are not removed."""
    yield from find_flaws(found)
    if not found.num_rows:
        if not found.flaws:
            yield Fault(found.name, "is empty - give it rows, or remove it")
        return
    for want in wanted:
        if want.column in found.columns:
            yield from find_cell_faults(found, want, without_empty)
        elif want.needed:
            yield Fault(found.name, _missing_column(want, found.columns))


def find_flaws(found: FileScan) -> Iterator[Fault]:
    """Yield the parts of a file that cannot be read."""
    for what, places in found.flaws.items():
        yield Fault(f"{found.name}, {places}", what)


def find_unreadable_cells(found: FileScan, want: RequestedColumn) -> Iterator[Fault]:
    """Yield the cells of a role that cannot be read as its type."""
    for (what, fix), places in found.roles[want.role].unreadable.items():
        where = f"{found.name}, column {want.column!r}"
        yield Fault(where, f"{what} in {count_rows(places)} - {fix}")


def find_cell_faults(
    found: FileScan, want: RequestedColumn, without_empty: bool = False
) -> Iterator[Fault]:
    """Yield all problems with the cells of a role."""
    yield from find_unreadable_cells(found, want)
    seen = found.roles[want.role]
    if seen.empty.count and want.must_be_filled:
        if without_empty and seen.empty.count < found.num_rows:
            return
        what = f"is empty in {count_rows(seen.empty)} - fill or remove them"
        what += "" if without_empty else ", or remove them with data.empty=drop"
        yield Fault(f"{found.name}, column {want.column!r}", what)


def note_dropped_rows(found: FileScan, wanted: list[RequestedColumn]) -> Iterator[str]:
    """Yield notes on incomplete rows that are removed."""
    for want in wanted:
        places = found.roles[want.role].empty
        if want.must_be_filled and places.count:
            what = f"{count_rows(places)} with an empty {want.column!r}"
            yield f"{found.name}: removed {what} (data.empty=drop)"


def is_empty(value: Any) -> bool:
    """Return whether a cell has no value: null, NaN, blank text or an empty list."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (list, Mapping)):
        return not value
    return is_missing(value)


def is_missing(value: Any) -> bool:
    """Return whether a cell is null or NaN."""
    return value is None or value != value


def _missing_column(want: RequestedColumn, columns: set[str]) -> str:
    there = ", ".join(sorted(columns))
    hint = nearest(want.column, columns)
    todo = hint if hint.startswith("did") else f"set {want.setting}=<column>"
    if len(columns) == 1 and any(mark in there for mark in ";\t|"):
        todo = "its columns seem to have another separator: save it as csv or tsv"
    return f"has no column {want.column!r} ({want.setting}), it has {there} - {todo}"
