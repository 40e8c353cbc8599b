"""Profiles of data columns: counts, lengths and values, and what they suggest a column contains."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftkit.data.validation import is_empty

MOST_VALUES = 1000
MOST_CLASSES = 100
NUMBER = re.compile(r"-?\d+(\.\d*)?")
LABEL_NAMES = {
    "label", "labels", "class", "category", "target", "sentiment", "polarity", "intent", "topic",
    "rating", "stars", "score", "tag", "relation", "similarity", "y",
}  # fmt: skip
MARKS = (("<e1", "<e2"), ("[E1", "[E2"))
SEPARATORS = (";", "|", ",")


@dataclass
class ColumnProfile:
    """Statistics of one column."""

    name: str
    num_rows: int = 0
    num_empty: int = 0
    num_texts: int = 0
    num_lists: int = 0
    """Rows with a list of words."""
    num_hollow: int = 0
    """Rows with a mapping that has an empty list, such as a question without answers."""
    num_marked: int = 0
    """Texts with markers around two entities."""
    words: list[int] = field(default_factory=list)
    """Number of words per row."""
    sizes: list[int] = field(default_factory=list)
    """Length of the list of words per row, 0 if it is not a list."""
    values: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    """Items of lists of words."""
    fractional: bool = False

    def add(self, value: Any) -> None:
        """Add one more value."""
        self.num_rows += 1
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        of_words = isinstance(value, list) and all(isinstance(v, (str, int)) for v in value)
        self.sizes.append(len(value) if of_words else 0)
        if of_words:
            self.num_lists += 1
            self._remember(self.items, map(str, value))
        self.num_hollow += isinstance(value, Mapping) and [] in value.values()
        if is_empty(value):
            self.num_empty += 1
            self.words.append(0)
            return
        text = str(value)
        self.fractional |= bool(re.fullmatch(r"-?\d+\.\d*[1-9]\d*", text))
        if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
            self.num_texts += 1
            self.num_marked += any(a in value and b in value for a, b in MARKS)
        self.words.append(len(text.split()))
        self._remember(self.values, [text])

    def _remember(self, known: set[str], more: Any) -> None:
        """Add values to a set, up to a maximum."""
        if len(known) <= MOST_VALUES:
            known.update(more)

    @property
    def num_filled(self) -> int:
        """Number of non-empty rows."""
        return self.num_rows - self.num_empty

    @property
    def num_values(self) -> int:
        """Number of distinct values (up to a thousand)."""
        return len(self.values)

    @property
    def mean_words(self) -> float:
        """Mean number of words of non-empty rows."""
        return sum(self.words) / max(1, self.num_filled)

    @property
    def is_text(self) -> bool:
        """Whether it contains texts, rather than values from a short list."""
        varied = self.num_values > min(MOST_CLASSES, 0.5 * self.num_filled)
        return self.num_texts > 0.5 * self.num_filled and varied and self.mean_words >= 2

    @property
    def is_label(self) -> bool:
        """Whether it contains few distinct values, each many times."""
        most = min(MOST_CLASSES, max(2, self.num_rows // 3))
        few = 2 <= self.num_values <= most and self.mean_words < 6
        return few and not self.fractional and not self.num_lists

    @property
    def is_called_label(self) -> bool:
        """Whether it has a usual name of a target column."""
        return self.name.lower() in LABEL_NAMES

    @property
    def is_scale(self) -> bool:
        """Whether it contains numbers with many distinct values."""
        many = self.fractional or self.num_values > MOST_CLASSES
        return self.num_texts == 0 and not self.num_lists and many

    @property
    def is_words(self) -> bool:
        """Whether it contains lists of words or tags."""
        return self.num_lists > 0.9 * self.num_rows

    @property
    def is_marked(self) -> bool:
        """Whether its texts mark two entities."""
        return self.num_marked > 0.9 * self.num_filled

    @property
    def separator(self) -> str | None:
        """The separator between labels in a cell, if there are few labels in many combinations."""
        for mark in SEPARATORS:
            cells = [value.split(mark) for value in self.values if not value.startswith("[")]
            parts = {part.strip() for cell in cells for part in cell} - {""}
            several = sum(len(cell) > 1 for cell in cells)
            short = all(len(part.split()) <= 3 for part in parts)
            if several and short and 2 <= len(parts) <= min(MOST_CLASSES, self.num_rows // 3):
                return mark
        return None


def describe_columns(columns: Mapping[str, ColumnProfile]) -> str:
    """Return the columns with their number of values, for a message."""
    return "columns " + ", ".join(f"{c.name!r} ({c.num_values} values)" for c in columns.values())
