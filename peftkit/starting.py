"""A first recipe for one's own data: what its columns seem to be, and how long its texts are."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from peftkit.data.formats import Flaw, records
from peftkit.data.layout import Layout, layout_of
from peftkit.data.preflight import Places, is_empty
from peftkit.errors import DataError, Fault, RecipeError
from peftkit.sources import find_dataset

_MOST_ROWS = 100_000  # read to guess from; label columns are often sorted, so a few rows mislead
_MOST_VALUES = 1000
_MOST_CLASSES = 100
_LONGEST = 512  # positions of the model the recipe names
_SPLITS = ("train", "validation", "test")
_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_LABEL_NAMES = {
    "label", "labels", "class", "category", "target", "sentiment", "polarity", "intent", "topic",
    "rating", "stars", "score", "tag", "relation", "y",
}  # fmt: skip
_PAIRS = [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
          ("text1", "text2"), ("question", "sentence"), ("text", "text_pair")]  # fmt: skip


@dataclass(frozen=True)
class NewRecipe:
    """A recipe that was written, and what it rests on."""

    path: Path
    text: str
    lines: tuple[str, ...]
    """What was guessed, a line each."""


@dataclass
class Column:
    """What one column seems to hold."""

    name: str
    num_rows: int = 0
    num_empty: int = 0
    num_texts: int = 0
    words: list[int] = field(default_factory=list)
    values: set[str] = field(default_factory=set)
    fractional: bool = False

    def note(self, value: Any) -> None:
        """Take one more value into account."""
        self.num_rows += 1
        if is_empty(value):
            self.num_empty += 1
            return
        told = str(value)
        self.fractional |= bool(re.fullmatch(r"-?\d+\.\d*[1-9]\d*", told))
        if isinstance(value, str) and not re.fullmatch(r"-?[\d.]+", value.strip()):
            self.num_texts += 1
        self.words.append(len(told.split()))
        if len(self.values) <= _MOST_VALUES:
            self.values.add(told)

    @property
    def num_values(self) -> int:
        """How many different values were met (counted to a thousand)."""
        return len(self.values)

    @property
    def mean_words(self) -> float:
        """The mean length in words."""
        return sum(self.words) / max(1, len(self.words))

    @property
    def is_text(self) -> bool:
        """Whether it holds texts that are not drawn from a short list."""
        filled = self.num_rows - self.num_empty
        varied = self.num_values > min(_MOST_CLASSES, 0.5 * filled)
        return self.num_texts > 0.5 * filled and varied and self.mean_words >= 2

    @property
    def is_label(self) -> bool:
        """Whether it holds few values, each many times."""
        most = min(_MOST_CLASSES, max(2, self.num_rows // 3))
        return 2 <= self.num_values <= most and not self.fractional and self.mean_words < 6


def new(path: Path, to: Path | None = None) -> NewRecipe:
    """Write a recipe for the data at `path` (to `recipes/<its name>.yaml`, unless `to` is given).

    Raises `DataError` where the columns cannot be told, `RecipeError` where another recipe of
    that name stands.
    """
    layout = layout_of(Path(find_dataset(_as_path(path)).location), None)
    columns = _columns(layout)
    texts, label = _texts_in(columns), None
    if texts:
        label = _label_in([column for column in columns if column not in texts])
    if not texts or label is None:
        raise DataError(f"no recipe can be guessed for {path}:", _why_not(columns, texts))
    recipe = _recipe(path, layout, texts, label)
    target = to or Path("recipes") / f"{_plain(path.resolve().stem)}.yaml"
    _write(target, recipe.text)
    return NewRecipe(target, recipe.text, recipe.lines)


def _as_path(path: Path) -> str:
    """`path` written so that it cannot be taken for a name on the hub."""
    return str(path) if path.is_absolute() else f"./{path}"


def _columns(layout: Layout) -> list[Column]:
    """What the training files' first rows hold, a column each."""
    columns: dict[str, Column] = {}
    flaws: dict[str, Places] = {}
    for name, record in islice(_training_records(layout), _MOST_ROWS):
        if isinstance(record, Flaw):
            flaws.setdefault(record.what, Places()).add(f"{name}, {record.place}")
            continue
        for key, value in record.values.items():
            columns.setdefault(key, Column(key)).note(value)
    if flaws or not columns:
        faults = [Fault(str(places), what) for what, places in flaws.items()]
        empty = [Fault(str(layout.base), "its training files have no rows - give them some")]
        raise DataError("the data cannot be read:", faults or empty)
    return list(columns.values())


def _training_records(layout: Layout) -> Iterator[tuple[str, Any]]:
    for path in layout.files["train"]:
        for record in records(path):
            yield layout.name(path), record


def _texts_in(columns: list[Column]) -> list[Column]:
    """The text column, or the two columns that are known to be compared."""
    texts = {column.name: column for column in columns if column.is_text}
    for first, second in _PAIRS:
        if first in texts and second in texts:
            return [texts[first], texts[second]]
    longest = sorted(texts.values(), key=lambda column: -column.mean_words)
    return longest[:1]


def _label_in(columns: list[Column]) -> Column | None:
    """The column with few values; one that is called like a label before others."""
    usable = [column for column in columns if column.is_label]
    usable.sort(key=lambda column: (not _is_called_label(column), column.num_values))
    called = [c for c in columns if _is_called_label(c) and c.num_values > 1]
    if called and called[0] not in usable and _looks_continuous(called[0]):
        return None  # a number to predict: another column with few values is not what is meant
    return usable[0] if usable else None


def _is_called_label(column: Column) -> bool:
    return column.name.lower() in _LABEL_NAMES


def _looks_continuous(column: Column) -> bool:
    return column.num_texts == 0 and (column.fractional or column.num_values > _MOST_CLASSES)


def _why_not(columns: list[Column], texts: list[Column]) -> list[Fault]:
    if not texts:
        what = "no column holds texts of several words - write a recipe by hand, naming data.text"
        return [Fault(_told(columns), what)]
    rest = [column for column in columns if column not in texts]
    scales = [c for c in rest if _looks_continuous(c) and (c.fractional or _is_called_label(c))]
    if scales:
        usable = ", ".join(column.name for column in rest if column.is_label) or "none"
        what = (
            "holds numbers on a scale, which is a regression, and peftkit knows classification "
            "only - sort them into a few classes (low, middle, high), or take another label "
            f"(columns that could be one: {usable})"
        )
        return [Fault(f"column {column.name!r}", what) for column in scales]
    what = f"none holds 2 to {_MOST_CLASSES} values, many times each - add a column with the label"
    return [Fault(_told(rest or columns), what)]


def _told(columns: list[Column]) -> str:
    return "columns " + ", ".join(f"{c.name!r} ({c.num_values} values)" for c in columns)


def _recipe(path: Path, layout: Layout, texts: list[Column], label: Column) -> NewRecipe:
    length, length_line = _length(texts)
    lines = [
        "task: classification, since the label has few values",
        *(f"{key}: column {c.name!r}, {c.mean_words:.0f} words on average"
          for key, c in zip(("text", "second text"), texts, strict=False)),
        f"label: column {label.name!r} ({_values(label)})",
        length_line,
        _splits_line(layout),
        *(f"note: {note}" for note in layout.notes),
        *(f"mind: column {c.name!r} is empty in {c.num_empty} rows, which training refuses"
          for c in (*texts, label) if c.num_empty),
    ]  # fmt: skip
    data: dict[str, object] = {"kind": "files", "path": path.as_posix(), "text": texts[0].name}
    if len(texts) > 1:
        data["text_pair"] = texts[1].name
    data |= {"label": label.name, "max_length": length}
    body = [f"  {key}: {_scalar(value)}" for key, value in data.items()]
    written = [f"# Written by peftkit new, which guessed from {path.name}:"]
    written += [f"#   {line}" for line in lines]
    written += [f"model: {_MODEL}", "data:", *body, "task: classification"]
    written += ["strategy: {kind: lora, r: 8}", _training(label.num_rows), ""]
    return NewRecipe(path, "\n".join(written), tuple(lines))


def _training(num_rows: int) -> str:
    """Enough steps to learn something: small data is read more often, in smaller batches."""
    epochs, batch_size = (5, 8) if num_rows < 500 else (3, 32) if num_rows < 5000 else (1, 32)
    return f"training: {{epochs: {epochs}, batch_size: {batch_size}}}"


def _length(texts: list[Column]) -> tuple[int, str]:
    """Tokens that hold all but one in twenty texts, in steps of 32, and the line that says so."""
    lengths = sorted(sum(words) for words in zip(*(column.words for column in texts), strict=False))
    tokens = [int(1.3 * words) + 1 + len(texts) for words in lengths]  # a word is about 1.3 tokens
    wanted = tokens[int(0.95 * (len(tokens) - 1))]
    length = min(_LONGEST, max(32, -(-wanted // 32) * 32))
    cut = sum(count > length for count in tokens) / len(tokens)
    return length, f"max_length: {length} tokens, by which about {cut:.0%} of the texts are cut"


def _splits_line(layout: Layout) -> str:
    files = {split: layout.files[split] for split in _SPLITS if split in layout.files}
    parts = [
        f"{split} = {', '.join(map(layout.name, paths[:3]))}{' ...' if paths[3:] else ''}"
        for split, paths in files.items()
    ]
    told = f"splits: {', '.join(parts)}"
    if len(files) == 3:
        return told
    if "validation" in files:
        return f"{told}; validation is scored, since there is no test"
    carved = "validation rows are" if "test" in files else "test and validation rows are"
    return f"{told}; {carved} carved out of train"


def _values(column: Column) -> str:
    values = sorted(column.values)
    listed = ", ".join(values[:6])
    return f"{len(values)} values: {listed}{', ...' if len(values) > 6 else ''}"


def _scalar(value: object) -> str:
    """`value` as YAML: quoted (as JSON is) where a plain word could mean something else."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*", value)
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf"}
    return str(value) if plain and str(value).lower() not in words else json.dumps(value)


def _plain(name: str) -> str:
    """`name` as a recipe's: words and dashes; an underscore first would make it a base."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "mine"


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        todo = "remove it, or give another name with --to"
        raise RecipeError(f"{path} stands there already and says something else - {todo}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
