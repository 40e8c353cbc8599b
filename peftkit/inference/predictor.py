"""Predict new rows with a finished run, in their order, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from peftkit.config.recipe import Recipe
from peftkit.data.cells import Cell, read_cell
from peftkit.data.reading import UsedRoles
from peftkit.data.validation import is_empty, to_role
from peftkit.errors import DataError, RunError
from peftkit.evaluation.generation import generate_answers
from peftkit.evaluation.prediction import MAX_TOKENS, merge_batches, predict_batches
from peftkit.evaluation.streaming import OnText
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source
from peftkit.loading.model import LoadedModel, load_model, load_tokenizer
from peftkit.preprocessing.batching import longest_first
from peftkit.readers.values import CellError
from peftkit.records.artifact import check
from peftkit.records.record import RunRecord, run_folder
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import resolve_precision, threads_of_rank
from peftkit.tasks.base import EvalSplit
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.training.packing import with_engine

CHUNK = 1024
"""Rows that are sorted by length and batched together."""

Row = str | Sequence[Any] | Mapping[str, Any]
"""The input of one prediction: a text, the inputs in order, or a mapping by role or column."""


def predict(run: RunRecord | Path | str, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Predict each row with `run` (a record or a directory); one mapping per row, by task.

    Classification returns 'label' and 'probabilities', tagging 'words', 'tags' and 'entities',
    text generation 'generated'. A row is a text, a tuple of the run's inputs (two texts, question
    and context), or a mapping by role or column. Raises `RunError` if the run is not finished and
    `DataError` if a row lacks an input.
    """
    if isinstance(rows, str):
        raise DataError(f"expected a list of texts, got one text - pass [{rows[:20]!r} ...]")
    return list(predictions(RunDir.open(run_folder(run)).path, rows))


def predictions(
    folder: Path, rows: Iterable[Row], show: OnText | None = None
) -> Iterator[dict[str, Any]]:
    """The predictions for a stream of rows, in order; `show` receives the words of a single row's
    generated text as they are generated."""
    inputs = inputs_of(folder)
    recipe, loaded, names = load_run(folder)
    stream, first = iter(rows), 1
    while chunk := list(islice(stream, CHUNK)):
        columns = columns_of(chunk, first, inputs)
        yield from predict_columns(recipe, loaded, names, columns, show)
        first += len(chunk)


def predict_columns(
    recipe: Recipe,
    loaded: LoadedModel,
    names: Sequence[str],
    columns: Mapping[str, list[Any]],
    show: OnText | None = None,
) -> Iterator[dict[str, Any]]:
    """The predictions for one chunk of rows."""
    task, generator = recipe.task, recipe.task.text_generator
    if generator is not None:
        how = task.generation or Generation()
        for text in generate_answers(recipe, loaded, columns, generator, how, show):
            yield {"generated": text.strip()}
        return
    encoded = task.encode(columns, loaded.tokenizer, names, recipe.data.max_length)
    rows = [
        dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)
    ]
    batches = longest_first([len(row["input_ids"]) for row in rows], MAX_TOKENS)
    outputs = merge_batches(predict_batches(loaded, task, rows, batches), encoded["labels"])
    split = EvalSplit(columns, encoded, names, resamples=0, fitted_state=task.fitted_state)
    yield from task.answers(outputs, split)


def group_texts(texts: Sequence[str], inputs: Inputs) -> list[tuple[str, ...]]:
    """The texts of a command line as rows with the run's required inputs.

    Raises `DataError` if their number is not a multiple of the number of inputs.
    """
    size = len(inputs.required)
    if len(texts) % size:
        what = f"a row has {size} texts ({', '.join(inputs.required)}), and {len(texts)} are given"
        raise DataError(f"{what} - give {size} for each row, in this order")
    return [tuple(texts[first : first + size]) for first in range(0, len(texts), size)]


def format_prediction(prediction: Mapping[str, Any]) -> str:
    """A prediction on one line, for people to read."""
    if "entities" in prediction:
        entities = prediction["entities"]
        return "  ".join(f"{entity['text']} {entity['type']}" for entity in entities) or "none"
    return "\t".join(map(format_value, prediction.values()))


def format_value(value: Any) -> str:
    """One value of a prediction: mappings and lists on one line, numbers with four digits."""
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {format_value(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(format_value, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Inputs:
    """The inputs that a run reads from each row, by role ('text', 'question', ...)."""

    required: tuple[str, ...]
    """The roles that a row must have, in the order of a row that is a tuple."""
    optional: tuple[str, ...]
    any_of: bool
    """Whether one of all these roles is enough."""
    columns: Mapping[str, str]
    """The name of each role's column."""
    cells: Mapping[str, Cell]
    """The type of each role's values."""
    used: UsedRoles
    """Selects from the roles of a row those that the model's input is built from."""

    def value(self, row: Mapping[str, Any], role: str) -> Any:
        """A row's value for a role, or None."""
        return row.get(role if role in row else self.columns.get(role, role))

    def cell(self, value: Any, role: str, number: int) -> Any:
        """A value converted to the type of its role, as in training files.

        Raises `DataError` with the `number` of the row.
        """
        try:
            return read_cell(value, self.cells[role])
        except CellError as error:
            raise DataError(f"text {number}: {role} {error}") from None


def inputs_of(folder: Path) -> Inputs:
    """The inputs of the run in `folder`."""
    run = RunDir(folder)
    return inputs_from(run.recipe, run.description().get("inputs"))


def inputs_from(recipe: Recipe, trained_roles: Sequence[str] | None) -> Inputs:
    """The inputs of a run whose train split had `trained_roles` (None: an old run, unrecorded)."""
    task, data = recipe.task, recipe.data
    required = tuple(role for role in task.inputs if task.roles[role])
    if trained_roles is None:
        trained_roles = [*required, *(["text_pair"] if data.text_pair else [])]
    any_of = not required  # a row that is a text is then the first role
    required = tuple(role for role in task.inputs if role in trained_roles)
    required = task.inputs[:1] if any_of else required
    optional = tuple(role for role in task.inputs if role not in required)
    columns = {want.role: want.column for want in data.wanted(task.roles)}
    cells = {role: to_role(role, need).cell for role, need in task.roles.items()}
    return Inputs(required, optional, any_of, columns, cells, task.used_roles)


def columns_of(chunk: Sequence[Row], first: int, inputs: Inputs) -> dict[str, list[Any]]:
    """Rows as columns by role; `first` is the number of the chunk's first row.

    Raises `DataError` for a row that is empty or lacks a required input.
    """
    rows = [read_row(row, number, inputs) for number, row in enumerate(chunk, first)]
    roles = [r for r in (*inputs.required, *inputs.optional) if any(r in row for row in rows)]
    return {role: [row.get(role) for row in rows] for role in roles}


def read_row(row: Row, number: int, inputs: Inputs) -> dict[str, Any]:
    """One row's inputs by role."""
    required = inputs.required
    if isinstance(row, Mapping):
        found = {role: inputs.value(row, role) for role in (*required, *inputs.optional)}
        present = [role for role, value in found.items() if value is not None]
        used = {*required, *inputs.used(present)}
        cells = {role: inputs.cell(found[role], role, number) for role in present if role in used}
        values = {role: value for role, value in cells.items() if not is_empty(value)}
        missing = [role for role in required if role not in values]
        if missing and not (inputs.any_of and values):
            what = "is empty" if len(required) == 1 else f"has no {missing[0]}"
            raise DataError(f"text {number} {what} - there is nothing to predict")
        return values
    single = isinstance(row, (str, bytes)) or not isinstance(row, Iterable)
    parts = (row,) if single else tuple(row)
    if len(parts) != len(required):
        what = f"{len(parts)} values for ({', '.join(required)})"
        raise DataError(f"text {number}: {what} - pass one value per input")
    pairs = zip(required, parts, strict=True)
    values = {role: inputs.cell(part, role, number) for role, part in pairs}
    if any(map(is_empty, values.values())):
        raise DataError(f"text {number} is empty - there is nothing to predict")
    return values


def load_run(path: Path) -> tuple[Recipe, LoadedModel, list[str]]:
    """A run's recipe, its model with the trained weights, and the names of its labels.

    Raises `RunError` if the base model is no longer the one that the run was trained on.
    """
    folder = RunDir(path)
    facts = folder.description()
    recipe = folder.recipe.with_fitted_state(facts.get("fitted_state", {}))
    torch.set_num_threads(threads_of_rank(recipe.training.threads))
    source = base_of_run(folder)
    check(folder.artifact, source)
    precision = facts.get("world", {}).get("precision") or resolve_precision(
        recipe.training.precision
    )
    tokenizer = load_tokenizer(source.location, recipe.task)
    loaded = load_model(recipe, source, tokenizer, facts["names"], precision, folder.artifact)
    if loaded.batcher.packed and facts.get("engine"):
        loaded = with_engine(loaded, facts["engine"]["used"])
    return recipe, loaded, facts["names"]


def base_of_run(folder: RunDir) -> Source:
    """The base model of a run, at its present location.

    Raises `RunError` if it is no longer the one that the run was trained on.
    """
    recipe, was = folder.recipe, Source.model_validate(folder.description()["model"])
    source = was if Path(was.location).exists() else find_model(recipe.model)
    if source.identity != was.identity:
        raise RunError(
            f"{folder.path}: was trained on another {recipe.model} ({was.identity[:24]}) than the "
            f"one found now ({source.identity[:24]}) - restore the earlier one"
        )
    return source
