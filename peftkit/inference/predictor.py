"""Prediction: a finished run's word on new texts, in their order, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from peftkit.config.recipe import Recipe
from peftkit.data.cells import Cell, read_cell
from peftkit.data.readers.values import Unreadable
from peftkit.data.reading import Used
from peftkit.data.validation import is_empty, role_of
from peftkit.errors import DataError, RunError
from peftkit.evaluation.generation import answers_to
from peftkit.evaluation.prediction import MAX_TOKENS, collected, forward
from peftkit.evaluation.streaming import Show
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source
from peftkit.loading.model import LoadedModel, load_model, load_tokenizer
from peftkit.preprocessing.batching import longest_first
from peftkit.records.artifact import check
from peftkit.records.record import RunRecord, run_folder
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import resting_precision, threads_of_rank
from peftkit.tasks.base import EvalSplit
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.training.packing import using

CHUNK = 1024
"""Rows that are sorted by length and predicted together."""

Row = str | Sequence[Any] | Mapping[str, Any]
"""What one prediction is made from: a text, the inputs in their order, or by role or column."""


def predict(run: RunRecord | Path | str, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What `run` (a record or a folder) says of each row: label and probabilities, tags, a text.

    A row is a text, a tuple where the run reads several inputs (two texts, question and context),
    or a mapping of roles or of the run's columns. Raises `RunError` where the run is not finished,
    `DataError` where a row lacks what the run reads.
    """
    if isinstance(rows, str):
        raise DataError(f"one text instead of several - give [{rows[:20]!r} ...], a list")
    return list(predictions(RunDir.open(run_folder(run)).path, rows))


def predictions(
    folder: Path, rows: Iterable[Row], show: Show | None = None
) -> Iterator[dict[str, Any]]:
    """The predictions for a stream of rows, in their order; `show` is told the words of a single
    row's text as they come."""
    wanted = inputs_of(folder)
    recipe, assembled, names = load_run(folder)
    stream, first = iter(rows), 1
    while chunk := list(islice(stream, CHUNK)):
        columns = columns_of(chunk, first, wanted)
        yield from predicted(recipe, assembled, names, columns, show)
        first += len(chunk)


def predicted(
    recipe: Recipe,
    assembled: LoadedModel,
    names: Sequence[str],
    columns: Mapping[str, list[Any]],
    show: Show | None = None,
) -> Iterator[dict[str, Any]]:
    """The predictions for one chunk of rows."""
    task = recipe.task
    if isinstance(task, LanguageModeling):
        how = task.generate or Generation()
        for text in answers_to(recipe, assembled, columns, task, how, show):
            yield {"generated": text.strip()}
        return
    encoded = task.encode(columns, assembled.tokenizer, names, recipe.data.max_length)
    rows = [
        dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)
    ]
    batches = longest_first([len(row["input_ids"]) for row in rows], MAX_TOKENS)
    found = collected(forward(assembled, task, rows, batches), encoded["labels"])
    given = EvalSplit(columns, encoded, names, resamples=0, tuned=task.carried)
    yield from task.answers(found, given)


def rows_given(texts: Sequence[str], inputs: Inputs) -> list[tuple[str, ...]]:
    """Texts of a command line as rows of as many inputs as the run reads.

    Raises `DataError` where they are not as many as that, or several times as many.
    """
    each = len(inputs.asked)
    if len(texts) % each:
        wanted = ", ".join(inputs.asked)
        what = f"the run reads {each} texts a row ({wanted}), and {len(texts)} are given"
        raise DataError(f"{what} - give {each} for each row, in this order")
    return [tuple(texts[first : first + each]) for first in range(0, len(texts), each)]


def told(said: Mapping[str, Any]) -> str:
    """An answer on one line, as people read it: what is said first, the rest behind it."""
    if "entities" in said:
        return "  ".join(f"{each['text']} {each['type']}" for each in said["entities"]) or "none"
    return "\t".join(spelled(value) for value in said.values())


def spelled(value: Any) -> str:
    """One part of an answer."""
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {spelled(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(spelled, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Inputs:
    """What a run reads of each row."""

    asked: tuple[str, ...]
    """The roles that a row must have, in the order in which they are given."""
    also: tuple[str, ...]
    """Those that it may have."""
    any_of: bool
    """Whether any one of both will do."""
    columns: Mapping[str, str]
    """By role the column that the run read."""
    cells: Mapping[str, Cell]
    """By role what its cells are."""
    used: Used
    """Of the roles that a row has, those that something is made of."""

    def value(self, row: Mapping[str, Any], role: str) -> Any:
        """A row's value for a role; None where it has none."""
        place = role if role in row else self.columns.get(role, role)
        return row.get(place)

    def cell(self, value: Any, role: str, number: int) -> Any:
        """A value as what the role's cells are, as in the files that a run learns from.

        Raises `DataError`, which names the row by its `number`.
        """
        try:
            return read_cell(value, self.cells[role])
        except Unreadable as error:
            raise DataError(f"text {number}: {role} {error}") from None


def inputs_of(folder: Path) -> Inputs:
    """What the run in `folder` reads."""
    run = RunDir(folder)
    return inputs_asked(run.recipe, run.description().get("inputs"))


def inputs_asked(recipe: Recipe, read: Sequence[str] | None) -> Inputs:
    """What a run reads whose train split had the roles `read`; None: of a run of before."""
    task, data = recipe.task, recipe.data
    asked = tuple(role for role in task.inputs if task.roles[role])
    if read is None:
        read = [*asked, *(["text_pair"] if data.text_pair else [])]
    any_of = not asked  # then a text by itself is the first of them
    asked = task.inputs[:1] if any_of else tuple(role for role in task.inputs if role in read)
    also = tuple(role for role in task.inputs if role not in asked)
    columns = {want.role: want.column for want in data.wanted(task.roles)}
    cells = {role: role_of(role, need).cell for role, need in task.roles.items()}
    return Inputs(asked, also, any_of, columns, cells, task.used_roles)


def columns_of(chunk: Sequence[Row], first: int, inputs: Inputs) -> dict[str, list[Any]]:
    """Rows as columns, a role each; `first` is the number of the chunk's first row.

    Raises `DataError` that names a row which is empty, or is not what the run reads.
    """
    rows = [inputs_in(row, number, inputs) for number, row in enumerate(chunk, first)]
    there = [role for role in (*inputs.asked, *inputs.also) if any(role in row for row in rows)]
    return {role: [row.get(role) for row in rows] for role in there}


def inputs_in(row: Row, number: int, inputs: Inputs) -> dict[str, Any]:
    """One row's inputs by role."""
    asked = inputs.asked
    if isinstance(row, Mapping):
        known = {role: inputs.value(row, role) for role in (*asked, *inputs.also)}
        there = [role for role, value in known.items() if value is not None]
        of_use = {*asked, *inputs.used(there)}
        cells = {role: inputs.cell(known[role], role, number) for role in there if role in of_use}
        values = {role: value for role, value in cells.items() if not is_empty(value)}
        missing = [role for role in asked if role not in values]
        if missing and not (inputs.any_of and values):
            what = "is empty" if len(asked) == 1 else f"has no {missing[0]}"
            raise DataError(f"text {number} {what} - there is nothing to predict")
        return values
    alone = isinstance(row, (str, bytes)) or not isinstance(row, Iterable)
    parts = (row,) if alone else tuple(row)
    if len(parts) != len(asked):
        wanted = "single texts" if len(asked) == 1 else " and ".join(asked)
        raise DataError(f"text {number}: the run reads {wanted} (got {len(parts)}) - give those")
    pairs = zip(asked, parts, strict=True)
    values = {role: inputs.cell(part, role, number) for role, part in pairs}
    if any(map(is_empty, values.values())):
        raise DataError(f"text {number} is empty - there is nothing to predict")
    return values


def load_run(path: Path) -> tuple[Recipe, LoadedModel, list[str]]:
    """A run's recipe, its model with the artifact in place, and the labels' names.

    Raises `RunError` when the base model is no longer the one the run was made with.
    """
    folder = RunDir(path)
    said = folder.description()
    recipe = folder.recipe.carrying(said.get("tuned", {}))
    torch.set_num_threads(threads_of_rank(recipe.training.threads))
    source = base_of_run(folder)
    check(folder.artifact, source)
    precision = said.get("world", {}).get("precision") or resting_precision(
        recipe.training.precision
    )
    tokenizer = load_tokenizer(source.location, recipe.task)
    assembled = load_model(recipe, source, tokenizer, said["names"], precision, folder.artifact)
    if assembled.batcher.packed and said.get("engine"):
        assembled = using(assembled, said["engine"]["used"])
    return recipe, assembled, said["names"]


def base_of_run(folder: RunDir) -> Source:
    """The base model of a run, where it lies now.

    Raises `RunError` when it is no longer the one the run was made with.
    """
    recipe, was = folder.recipe, Source.model_validate(folder.description()["model"])
    source = was if Path(was.location).exists() else find_model(recipe.model)
    if source.identity != was.identity:
        raise RunError(
            f"{folder.path}: was trained on another {recipe.model} ({was.identity[:24]}) than the "
            f"one found now ({source.identity[:24]}) - put the old one back"
        )
    return source
