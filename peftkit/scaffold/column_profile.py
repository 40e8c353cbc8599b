"""Columns: what the columns of somebody's data seem to hold."""

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
    """What one column seems to hold."""

    name: str
    num_rows: int = 0
    num_empty: int = 0
    num_texts: int = 0
    num_lists: int = 0
    """Rows that hold a list of words."""
    num_hollow: int = 0
    """Rows that hold a mapping with an empty list, as of a question without answers."""
    num_marked: int = 0
    """Texts with the marks of a relation's two parts."""
    words: list[int] = field(default_factory=list)
    """How many words each row has."""
    sizes: list[int] = field(default_factory=list)
    """How long the lists of words are, 0 for what is none."""
    values: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    """What stands in lists of words, or between separators."""
    fractional: bool = False

    def add(self, value: Any) -> None:
        """Take one more value into account."""
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
        told = str(value)
        self.fractional |= bool(re.fullmatch(r"-?\d+\.\d*[1-9]\d*", told))
        if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
            self.num_texts += 1
            self.num_marked += any(a in value and b in value for a, b in MARKS)
        self.words.append(len(told.split()))
        self._remember(self.values, [told])

    def _remember(self, known: set[str], more: Any) -> None:
        """Remember values, unless there are too many of them to be few."""
        if len(known) <= MOST_VALUES:
            known.update(more)

    @property
    def num_filled(self) -> int:
        """Rows that hold something."""
        return self.num_rows - self.num_empty

    @property
    def num_values(self) -> int:
        """How many different values were met (counted to a thousand)."""
        return len(self.values)

    @property
    def mean_words(self) -> float:
        """The mean length in words, of rows that hold something."""
        return sum(self.words) / max(1, self.num_filled)

    @property
    def is_text(self) -> bool:
        """Whether it holds texts that are not drawn from a short list."""
        varied = self.num_values > min(MOST_CLASSES, 0.5 * self.num_filled)
        return self.num_texts > 0.5 * self.num_filled and varied and self.mean_words >= 2

    @property
    def is_label(self) -> bool:
        """Whether it holds few values, each many times."""
        most = min(MOST_CLASSES, max(2, self.num_rows // 3))
        few = 2 <= self.num_values <= most and self.mean_words < 6
        return few and not self.fractional and not self.num_lists

    @property
    def is_called_label(self) -> bool:
        """Whether its name says that it is what should be learned."""
        return self.name.lower() in LABEL_NAMES

    @property
    def is_scale(self) -> bool:
        """Whether it holds numbers of many sizes."""
        many = self.fractional or self.num_values > MOST_CLASSES
        return self.num_texts == 0 and not self.num_lists and many

    @property
    def is_words(self) -> bool:
        """Whether it holds lists of words, or of tags."""
        return self.num_lists > 0.9 * self.num_rows

    @property
    def is_marked(self) -> bool:
        """Whether its texts mark two parts."""
        return self.num_marked > 0.9 * self.num_filled

    @property
    def separator(self) -> str | None:
        """What parts a cell's labels, where there are few labels and many sets of them."""
        for mark in SEPARATORS:
            cells = [value.split(mark) for value in self.values if not value.startswith("[")]
            parts = {part.strip() for cell in cells for part in cell} - {""}
            several = sum(len(cell) > 1 for cell in cells)
            short = all(len(part.split()) <= 3 for part in parts)
            if several and short and 2 <= len(parts) <= min(MOST_CLASSES, self.num_rows // 3):
                return mark
        return None


def describe_columns(columns: Mapping[str, ColumnProfile]) -> str:
    """The columns with how many values each has, in words."""
    return "columns " + ", ".join(f"{c.name!r} ({c.num_values} values)" for c in columns.values())
