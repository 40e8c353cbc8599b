"""First recipes for new data, from what its columns suggest."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from peftkit.data.layout import Layout, find_layout
from peftkit.data.validation import Occurrences
from peftkit.errors import DataError, Fault, RecipeError
from peftkit.hub.resolve import find_dataset
from peftkit.readers.base import reader_for
from peftkit.readers.lines import Flaw
from peftkit.scaffold.column_profile import MOST_CLASSES, ColumnProfile, describe_columns
from peftkit.scaffold.task_inference import TaskGuess, find_texts, infer_task

_MOST_ROWS = 100_000  # read to guess from; label columns are often sorted, so a few rows mislead
WINDOWED = ("token_classification", "question_answering")
"""Tasks that read long texts in windows."""
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class NewRecipe:
    """A recipe that was written, and what it is based on."""

    path: Path
    text: str
    lines: tuple[str, ...]
    """What was inferred, one line each."""


def new(path: Path, to: Path | None = None) -> NewRecipe:
    """Write a recipe for the data at `path` (to `recipes/<its name>.yaml`, unless `to` is given).

    Raises `DataError` if no task fits the columns, `RecipeError` if a different recipe of that name
    exists.
    """
    layout = find_layout(Path(find_dataset(_as_path(path)).location), None)
    columns = _columns(layout)
    found = infer_task(columns)
    if found is None:
        raise DataError(f"no recipe can be guessed for {path}:", _why_not(columns))
    recipe = _recipe(path, layout, found)
    target = to or Path("recipes") / f"{_plain(path.resolve().stem)}.yaml"
    _write(target, recipe.text)
    return NewRecipe(target, recipe.text, recipe.lines)


def _as_path(path: Path) -> str:
    """Return `path` written so that it cannot be read as a name on the Hub."""
    return str(path) if path.is_absolute() else f"./{path}"


def _columns(layout: Layout) -> dict[str, ColumnProfile]:
    """Return profiles of the columns, from the first rows of the training files."""
    columns: dict[str, ColumnProfile] = {}
    flaws: dict[str, Occurrences] = {}
    for name, record in islice(_training_records(layout), _MOST_ROWS):
        if isinstance(record, Flaw):
            flaws.setdefault(record.what, Occurrences()).add(f"{name}, {record.place}")
            continue
        for key, value in record.values.items():
            columns.setdefault(key, ColumnProfile(key)).add(value)
    if flaws or not columns:
        faults = [Fault(str(places), what) for what, places in flaws.items()]
        empty = [Fault(str(layout.base), "its training files have no rows - give them some")]
        raise DataError("the data cannot be read:", faults or empty)
    return columns


def _training_records(layout: Layout) -> Iterator[tuple[str, Any]]:
    for path in layout.files["train"]:
        for record in reader_for(path).records(path):
            yield layout.name(path), record


def _why_not(columns: dict[str, ColumnProfile]) -> list[Fault]:
    texts = find_texts(columns)
    if not texts:
        what = "no column holds texts of several words - write a recipe by hand, naming data.text"
        return [Fault(describe_columns(columns), what)]
    rest = {name: column for name, column in columns.items() if column not in texts}
    what = f"none holds 2 to {MOST_CLASSES} values, many times each - add a column with the label"
    return [Fault(describe_columns(rest or columns), what)]


def _recipe(path: Path, layout: Layout, found: TaskGuess) -> NewRecipe:
    length, length_line = _length(found)
    kind = found.task["kind"]
    lines = [
        f"task: {kind}, since {found.why}",
        *(_column_line(role, column, found) for role, column in found.read.items()),
        length_line,
        _splits_line(layout),
        *(f"note: {note}" for note in (*layout.notes, *found.notes)),
        *(f"mind: column {c.name!r} is empty in {c.num_empty} rows, which training refuses"
          for role, c in found.read.items() if c.num_empty and role != "input"),
    ]  # fmt: skip
    data = {"kind": "files", "path": path.as_posix(), **found.data, "max_length": length}
    body = [f"  {key}: {_scalar(value)}" for key, value in data.items() if value != {}]
    written = [f"# Written by peftkit new, which guessed from {path.name}:"]
    written += [f"#   {line}" for line in lines]
    task = kind if found.task == {"kind": kind} else _scalar(found.task)
    written += [f"model: {found.model}", "data:", *body, f"task: {task}"]
    num_rows = max(column.num_rows for column in found.read.values())
    written += ["strategy: {kind: lora, r: 8}", _training(num_rows, found.epochs), ""]
    return NewRecipe(path, "\n".join(written), tuple(lines))


def _column_line(role: str, column: ColumnProfile, found: TaskGuess) -> str:
    if role == "label":
        return f"label: column {column.name!r} ({found.facts[role]})"
    about = found.facts.get(role, f"{column.mean_words:.0f} words on average")
    return f"{role}: column {column.name!r}, {about}"


def _training(num_rows: int, least: int | None) -> str:
    """Return training settings: small datasets get more epochs and smaller batches."""
    epochs, batch_size = (5, 8) if num_rows < 500 else (3, 32) if num_rows < 5000 else (1, 32)
    epochs = max(epochs, least or 1)
    return f"training: {{epochs: {epochs}, batch_size: {batch_size}}}"


def _length(found: TaskGuess) -> tuple[int, str]:
    """Return a token limit that 95 % of the texts fit in, in steps of 32, and a line that explains
    it."""
    texts = found.texts
    lengths = sorted(sum(words) for words in zip(*(column.words for column in texts), strict=False))
    # a word is about 1.3 tokens
    tokens = [int(1.3 * words) + 1 + len(texts) + found.extra_tokens for words in lengths]
    wanted = tokens[int(0.95 * (len(tokens) - 1))]
    length = min(found.longest, max(32, -(-wanted // 32) * 32))
    cut = sum(count > length for count in tokens) / len(tokens)
    done = "read in windows" if found.task["kind"] in WINDOWED else "cut"
    return length, f"max_length: {length} tokens, by which about {cut:.0%} of the texts are {done}"


def _splits_line(layout: Layout) -> str:
    files = {split: layout.files[split] for split in _SPLITS if split in layout.files}
    parts = [
        f"{split} = {', '.join(map(layout.name, paths[:3]))}{' ...' if paths[3:] else ''}"
        for split, paths in files.items()
    ]
    line = f"splits: {', '.join(parts)}"
    if len(files) == 3:
        return line
    if "validation" in files:
        return f"{line}; validation is scored, since there is no test"
    carved = "validation rows are" if "test" in files else "test and validation rows are"
    return f"{line}; {carved} carved out of train"


def _scalar(value: object) -> str:
    """Return `value` as YAML, quoted (as in JSON) if a plain word would be ambiguous."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*", value)
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf"}
    return str(value) if plain and str(value).lower() not in words else json.dumps(value)


def _plain(name: str) -> str:
    """Return `name` with words and dashes only; a leading underscore would make it a base
    recipe."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "mine"


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        todo = "remove it, or give another name with --to"
        raise RecipeError(f"{path} already exists with other content - {todo}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
