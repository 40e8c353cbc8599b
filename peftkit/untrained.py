"""Untrained: what the base says of the test rows before it is trained, asked once and kept."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from peftkit.disk import write_json
from peftkit.display import forget_peak
from peftkit.evaluation import predict
from peftkit.generating import Generated, generated_rows
from peftkit.language import LanguageModelling
from peftkit.model import assemble
from peftkit.recipe import Recipe
from peftkit.sources import Source, cache_folder
from peftkit.tasks import Given, Predictions
from peftkit.world import World, on_main, say, surroundings

UNTUNED = "untuned"
"""What the base's answers are called that is given no examples."""
VERSION = 2
"""Part of the cache's key: count it up when the base is asked otherwise."""


def untrained_predictions(
    recipe: Recipe, model: Source, tokenizer: Any, given: Given, content: str, world: World
) -> dict[str, Predictions]:
    """The bare base's word on the test rows by how it was asked, the same on every rank; nothing
    where the task does not compare with it or there are no rows.

    It is loaded and gone before the model that is trained: two are never in memory. Its answers are
    kept in peftkit's cache for all runs on the same rows (`content`), whatever their strategy.
    """
    if not recipe.task.compares_untuned or not len(given.examples):
        return {}
    parts = {
        "version": VERSION,
        "content": content,
        "quantize": recipe.quantize.model_dump(mode="json"),
        "world": surroundings(world),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / "untrained" / f"{key}.json"
    known = on_main(world, lambda: json.loads(path.read_text()) if path.is_file() else None)
    if known is None:
        say(world, "asking the untuned base about the test rows, to compare with")
        known = dict(asked(recipe, model, tokenizer, given, world))
        forget_peak()  # a run's is that of what it trains
        on_main(world, lambda: kept(path, known))
    return {name: predictions_of(said, given) for name, said in known.items()}


def kept(path: Any, known: Mapping[str, Any]) -> None:
    """Write what the base said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, known)


def predictions_of(said: Mapping[str, Any], given: Given) -> Predictions:
    """What was kept of one way to ask, as predictions."""
    outputs = [np.asarray(output, dtype=np.float32) for output in said["outputs"]]
    labels = list(given.examples["labels"])
    return Predictions(labels, outputs, said["loss"], said["texts"], said["samples"])


def asked(
    recipe: Recipe, model: Source, tokenizer: Any, given: Given, world: World
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the bare base says: outputs and loss, and texts where they are compared too."""
    task = recipe.task
    assembled = assemble(recipe, model, tokenizer, given.names, world.precision, bare=True)
    if torch.cuda.is_available() and not recipe.quantize.bits:  # bitsandbytes places its own
        assembled.module.to("cuda")
    found = predict(assembled, task, given.examples, world)
    made = Generated([], [])
    if isinstance(task, LanguageModelling) and task.generate and task.generate.untuned:
        made = generated_rows(recipe, assembled, given.rows, world)
    outputs = [np.asarray(output).tolist() for output in found.outputs]
    yield UNTUNED, {"outputs": outputs, "loss": found.loss, **made._asdict()}
