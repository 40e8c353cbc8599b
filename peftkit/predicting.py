"""Prediction: a finished run's word on new texts, in their order, a chunk at a time."""

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from peftkit.artefact import check
from peftkit.batching import longest_first
from peftkit.errors import DataError, RunError, nearest
from peftkit.evaluation import MAX_TOKENS, collected, forward
from peftkit.model import Assembled, assemble, load_tokenizer
from peftkit.recipe import Recipe
from peftkit.record import RunRecord
from peftkit.run_folder import RunFolder
from peftkit.sources import Source, find_model
from peftkit.tasks import Given
from peftkit.world import resting_precision, threads_of_rank

CHUNK = 1024
"""Texts that are sorted by length and predicted together."""

Text = str | tuple[str, str]


def predict(run: RunRecord | Path | str, texts: Iterable[Text]) -> list[dict[str, Any]]:
    """The label and the probabilities that `run` (a record or a folder) gives each text or pair.

    Raises `RunError` where the run is not finished, `DataError` where a text is empty or the run
    reads pairs and a text is none.
    """
    if isinstance(texts, str):
        raise DataError(f"one text instead of several - give [{texts[:20]!r} ...], a list")
    folder = Path("runs") / run.folder_name if isinstance(run, RunRecord) else Path(run)
    return list(predictions(RunFolder.open(folder).path, texts))


def predictions(folder: Path, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
    """The predictions for a stream of texts, in their order."""
    recipe, assembled, names = load_run(folder)
    stream, first = iter(texts), 1
    while chunk := list(islice(stream, CHUNK)):
        columns = columns_of(chunk, first, pairs=recipe.data.text_pair is not None)
        yield from predicted(recipe, assembled, names, columns)
        first += len(chunk)


def predicted(
    recipe: Recipe, assembled: Assembled, names: Sequence[str], columns: Mapping[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """The predictions for one chunk of texts."""
    task = recipe.task
    encoded = task.encode(columns, assembled.tokenizer, names, recipe.data.max_length)
    rows = [
        dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)
    ]
    batches = longest_first([len(row["input_ids"]) for row in rows], MAX_TOKENS)
    found = collected(forward(assembled, task, rows, batches), encoded["labels"])
    yield from task.answers(found, Given(columns, encoded, names, resamples=0))


def columns_of(chunk: Sequence[Text], first: int, pairs: bool) -> dict[str, list[str]]:
    """Texts or pairs as columns; `first` is the number of the chunk's first text.

    Raises `DataError` that names a text which is empty, or which is none of the `pairs` (the single
    texts) that the run reads.
    """
    parts = [(text,) if isinstance(text, str) else tuple(text) for text in chunk]
    for number, part in enumerate(parts, first):
        if len(part) != 1 + pairs:
            wanted = "pairs of texts" if pairs else "single texts"
            raise DataError(f"text {number}: the run reads {wanted} (got {len(part)}) - give those")
        if not all(text and text.strip() for text in part):
            raise DataError(f"text {number} is empty - there is nothing to predict")
    columns = zip(*parts, strict=True)
    return dict(zip(("text", "text_pair"), map(list, columns), strict=False))


def load_run(path: Path) -> tuple[Recipe, Assembled, list[str]]:
    """A run's recipe, its model with the artefact in place, and the labels' names.

    Raises `RunError` when the base model is no longer the one the run was made with.
    """
    folder = RunFolder(path)
    recipe, said = folder.recipe, folder.description()
    torch.set_num_threads(threads_of_rank(recipe.training.threads))
    source = Source.model_validate(said["model"])
    if not Path(source.location).exists():
        source = find_model(recipe.model)
    if source.identity != said["model"]["identity"]:
        was, now = said["model"]["identity"][:24], source.identity[:24]
        raise RunError(
            f"{path}: was trained on another {recipe.model} ({was}) than the one found now ({now}) "
            "- put the old one back"
        )
    check(folder.artefact, source)
    precision = said.get("world", {}).get("precision") or resting_precision(
        recipe.training.precision
    )
    tokenizer = load_tokenizer(source.location, recipe.task)
    assembled = assemble(recipe, source, tokenizer, said["names"], precision, folder.artefact)
    return recipe, assembled, said["names"]


def predict_file(folder: Path, source: Path, to: Path | None) -> int:
    """Score the rows of a csv file into another, its columns kept; the number of rows."""
    recipe = RunFolder.open(folder).recipe
    with open(source, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        wanted = [c for c in (recipe.data.text, recipe.data.text_pair) if c]
        check_columns(source, reader.fieldnames or [], wanted)
        if to is None:
            return write_scored(folder, reader, wanted, sys.stdout)
        with open(to, "w", newline="", encoding="utf-8") as out:
            return write_scored(folder, reader, wanted, out)


def check_columns(source: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a file without the columns that the run read."""
    for column in wanted:
        if column not in there:
            raise DataError(f"{source}: has no column {column!r} - {nearest(column, there)}")


def write_scored(folder: Path, rows: Any, wanted: Sequence[str], out: Any) -> int:
    """Write each row with its label and probabilities behind it."""
    kept: list[Mapping[str, str]] = []

    def texts() -> Iterator[Text]:
        for row in rows:
            kept.append(row)
            said = [row[column] or "" for column in wanted]  # a short row has None
            yield (said[0], said[1]) if len(said) == 2 else said[0]

    writer, count = None, 0
    for said in predictions(folder, texts()):
        probabilities = {f"probability[{k}]": f"{v:.6f}" for k, v in said["probabilities"].items()}
        line = {**kept.pop(0), "predicted": said["label"], **probabilities}
        if writer is None:
            writer = csv.DictWriter(out, list(line))
            writer.writeheader()
        writer.writerow(line)
        count += 1
    return count
