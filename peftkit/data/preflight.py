"""Preflight: what is wrong with the data, all of it at once, before anything is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peftkit.data.formats import Flaw, class_names, columns_of, records
from peftkit.errors import Fault, nearest

_MOST_LABELS = 1000
_TEXT_ROLES = ("text", "text_pair")


Need = bool | Literal["blank"]
"""Whether a task must have a role; blank: its cells may be empty, but not missing."""


class Wanted(NamedTuple):
    """A column that is to be read: for which role of the task, and whether it must be there."""

    role: str
    column: str
    needed: bool
    blank: bool = False
    """Whether an empty cell says something: that a text has none of the labels."""

    @property
    def setting(self) -> str:
        """The setting that names the column."""
        own = self.role in {*_TEXT_ROLES, "label", "group"}
        return f"data.{self.role}" if own else f"data.columns.{self.role}"

    def lacks(self, value: Any) -> bool:
        """Whether a cell of the column says nothing."""
        return is_missing(value) if self.blank else is_empty(value)

    @property
    def must_say(self) -> bool:
        """Whether a row whose cell says nothing is of no use."""
        return self.needed or self.role in _TEXT_ROLES


@dataclass
class Places:
    """How often something was met, and where first."""

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


def rows_at(places: Places) -> str:
    """How many rows, and which first."""
    return f"{places.count} {'row' if places.count == 1 else 'rows'} ({places})"


@dataclass
class Survey:
    """What one pass over one file found."""

    name: str
    num_rows: int = 0
    columns: set[str] = field(default_factory=set)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    flaws: dict[str, Places] = field(default_factory=dict)
    empty: dict[str, Places] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    fractional: bool = False
    """Whether any label is a number with a fraction's type, as in a regression."""
    worded: bool = False
    """Whether any label is no number."""

    @property
    def unlabelled(self) -> bool:
        """Whether the file could be read, but no row of it has a label."""
        if not self.num_rows or self.flaws:
            return False
        without = self.empty.get("label", Places()).count
        return without == self.num_rows


def survey(path: Path, name: str, wanted: list[Wanted]) -> Survey:
    """Read `path` once, and say what is there and what is missing."""
    found = Survey(name, columns=set(columns_of(path)), class_names=class_names(path))
    for record in records(path, [want.column for want in wanted]):
        if isinstance(record, Flaw):
            found.flaws.setdefault(record.what, Places()).add(record.place)
            continue
        found.num_rows += 1
        if not record.values.keys() <= found.columns:
            found.columns |= record.values.keys()
        for want in wanted:
            _note(found, want, record.values.get(want.column), record.place)
    return found


def faults_of(found: Survey, wanted: list[Wanted], without_empty: bool = False) -> Iterator[Fault]:
    """Everything that is wrong with one file; rows that lack something are not, where those are
    left out."""
    for what, places in found.flaws.items():
        yield Fault(f"{found.name}, {places}", what)
    if not found.num_rows:
        if not found.flaws:
            yield Fault(found.name, "is empty - give it rows, or remove it")
        return
    for want in wanted:
        if want.column not in found.columns:
            if want.needed:
                yield Fault(found.name, _no_column(want, found.columns))
        elif want.role in found.empty and want.must_say:
            places = found.empty[want.role]
            if without_empty and places.count < found.num_rows:
                continue
            rows = "1 row" if places.count == 1 else f"{places.count} rows"
            what = f"is empty in {rows} ({places}) - fill or remove them"
            what += "" if without_empty else ", or leave them out with data.empty=drop"
            yield Fault(f"{found.name}, column {want.column!r}", what)


def left_out_of(found: Survey, wanted: list[Wanted]) -> Iterator[str]:
    """What to say of the rows of one file that lack something and are left out."""
    for want in wanted:
        if want.must_say and (places := found.empty.get(want.role)):
            said = f"{rows_at(places)} with an empty {want.column!r}"
            yield f"{found.name}: left out {said}, as data.empty=drop says"


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, not a number, blank text or no items."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (list, Mapping)):
        return not value
    return is_missing(value)


def is_missing(value: Any) -> bool:
    """Whether there is no cell: null, or not a number."""
    return value is None or value != value


def is_number(value: Any) -> bool:
    """Whether a label says a number, be it as text."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def _note(found: Survey, want: Wanted, value: Any, place: str) -> None:
    if want.lacks(value):
        found.empty.setdefault(want.role, Places()).add(place)
    elif want.role == "label" and isinstance(value, (str, int, float)):
        found.fractional |= isinstance(value, float)
        found.worded |= not is_number(value)
        if len(found.labels) < _MOST_LABELS:
            found.labels.add(str(value))


def _no_column(want: Wanted, columns: set[str]) -> str:
    there = ", ".join(sorted(columns))
    hint = nearest(want.column, columns)
    todo = hint if hint.startswith("did") else f"set {want.setting}=<column>"
    if len(columns) == 1 and any(mark in there for mark in ";\t|"):
        todo = "its columns seem to be split by another character: save it as csv or tsv"
    return f"has no column {want.column!r} ({want.setting}), it has {there} - {todo}"
