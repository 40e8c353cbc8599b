"""Judging: the test rows predicted, texts generated, all scored beside the untuned base's word."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftkit.disk import write_json, writing
from peftkit.evaluation import predict
from peftkit.generating import generated_rows
from peftkit.language import LanguageModelling
from peftkit.metrics import gain, score_of
from peftkit.model import Assembled, assemble
from peftkit.recipe import Recipe
from peftkit.sources import Source
from peftkit.tallies import resampled_sums
from peftkit.tasks import Given, Predictions, Scored, Task
from peftkit.world import World, on_main, say, surroundings

FILE = "untuned.json"
"""In a run's folder, so that a run that is resumed does not ask the base again."""


def judged(
    recipe: Recipe, assembled: Assembled, given: Given, untuned: Predictions | None, world: World
) -> tuple[Predictions, Scored] | tuple[None, None]:
    """What the trained model says of the test rows, and what that is worth; none without rows."""
    task = recipe.task
    if not len(given.examples):
        return None, None
    said = predict(assembled, task, given.examples, world)
    said = replace(said, texts=generated_rows(recipe, assembled, given.rows, world))
    scored = task.score(said, given)
    return said, scored if untuned is None else compared(task, scored, said, untuned, given)


def untuned_predictions(
    recipe: Recipe,
    model: Source,
    tokenizer: Any,
    given: Given,
    folder: Path,
    world: World,
) -> Predictions | None:
    """The bare base's word on the test rows, the same on every rank; None where the task does not
    compare with it or there are no rows.

    It is loaded and gone before the model that is trained: two are never in memory.
    """
    task = recipe.task
    if not task.compares_untuned or not len(given.examples):
        return None
    path, where = folder / FILE, surroundings(world)
    known = on_main(world, lambda: json.loads(path.read_text()) if path.is_file() else None)
    if known is None or known["world"] != where:
        say(world, "asking the untuned base about the test rows, to compare with")
        known = {"world": where, **asked(recipe, model, tokenizer, given, world)}
        on_main(world, lambda: kept(path, known))
    outputs = [np.asarray(output, dtype=np.float32) for output in known["outputs"]]
    return Predictions(list(given.examples["labels"]), outputs, known["loss"], known["texts"])


def kept(path: Path, known: dict[str, Any]) -> None:
    """Write what is known, before the run has a folder; it is not asked for again."""
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
        write_json(path, known)


def asked(
    recipe: Recipe, model: Source, tokenizer: Any, given: Given, world: World
) -> dict[str, Any]:
    """What the bare base says: outputs and loss, and texts where they are compared too."""
    task = recipe.task
    assembled = assemble(recipe, model, tokenizer, given.names, world.precision, bare=True)
    if torch.cuda.is_available() and not recipe.quantize.bits:  # bitsandbytes places its own
        assembled.module.to("cuda")
    found = predict(assembled, task, given.examples, world)
    texts: Sequence[str | None] = []
    if isinstance(task, LanguageModelling) and task.generate and task.generate.untuned:
        texts = generated_rows(recipe, assembled, given.rows, world)
    outputs = [np.asarray(output).tolist() for output in found.outputs]
    return {"outputs": outputs, "loss": found.loss, "texts": texts}


def compared(
    task: Task, scored: Scored, said: Predictions, untuned: Predictions, given: Given
) -> Scored:
    """The scores with those of the untuned base beside them, and how far apart the two are."""
    plain = replace(given, train=None)
    bare = task.score(untuned, plain)
    ours, theirs = (task.counts(task.answers(each, plain), plain) for each in (said, untuned))
    details = {**scored.details, "better_than_untuned": gains(task, ours, theirs, given)}
    baselines = {**scored.baselines, "untuned": bare.scores}
    return Scored(scored.scores, scored.baseline or bare.scores, details, baselines)


def gains(task: Task, ours: Any, theirs: Any, given: Given) -> dict[str, Any]:
    """By how much each score is better than the base's, with its interval over the rows that both
    have; positive is better, also of scores of which less is."""
    found = {}
    pairs = zip(task.parts(ours, given.names), task.parts(theirs, given.names), strict=False)
    for (mine, totals), (base, _) in pairs:
        known = ~np.isnan(mine).any(axis=1) & ~np.isnan(base).any(axis=1)
        if not known.any():
            continue
        both = mine[known], base[known]
        points = [totals(counts.sum(axis=0, keepdims=True)) for counts in both]
        # by one seed, so that both are drawn over the same rows
        draws = [totals(resampled_sums(counts, max(1, given.resamples), 0)) for counts in both]
        for name in points[0]:
            value, drawn = (gain_of(name, each) for each in (points, draws))
            found[name] = score_of(float(value[0]), drawn, int(known.sum())).model_dump()
    return found


def gain_of(name: str, pair: Sequence[Any]) -> Any:
    """How much more of a score the first has than the second, or less where less is better."""
    return gain(name, 1.0) * (pair[0][name] - pair[1][name])
