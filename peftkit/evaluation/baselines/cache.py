"""Cached predictions of the untrained base model on the test rows."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from peftkit.config.recipe import Recipe
from peftkit.evaluation.baselines.base_models import load_base, place_model
from peftkit.evaluation.baselines.few_shot import predict_few_shot
from peftkit.evaluation.baselines.nearest_centroid import predict_by_embedding
from peftkit.evaluation.baselines.zero_shot import (
    Likelihoods,
    is_causal,
    predict_by_likelihood,
    sample_examples,
)
from peftkit.evaluation.generation import generate_rows
from peftkit.evaluation.prediction import predict
from peftkit.hub.source import Source, cache_folder
from peftkit.loading.model import load_model
from peftkit.models.architectures import first_position
from peftkit.runtime.distributed import World, execution_environment, on_main, say
from peftkit.runtime.peak_memory import reset_peak_bytes
from peftkit.storage.atomic_files import write_json
from peftkit.tasks.base import EvalSplit, Predictions
from peftkit.tasks.zero_shot import Prompts, ZeroShotSettings

UNTRAINED = "untrained"
"""Name of the baseline without training or examples."""
ZERO_SHOT = "zero-shot"
"""Name of the baseline that predicts classes from a prompt without examples."""
VERSION = 3
"""Part of the cache key: increase it when the base is queried differently."""
Answers = Iterator[tuple[str, dict[str, Any]]]
"""Baselines by name, each with `outputs`, `loss`, `texts` and `notes`."""


def predict_untrained(
    recipe: Recipe, model: Source, tokenizer: Any, given: EvalSplit, content: str, world: World
) -> dict[str, Predictions]:
    """Return the base model's predictions on the test rows by baseline, the same on every rank;
    empty if the task has no untrained baseline or there are no rows.

    The base is freed before the model to train is loaded, so there are never two in memory. The
    predictions are cached for all runs on the same rows (`content`), whatever their strategy.
    """
    if not recipe.task.has_untrained_baseline or not len(given.examples):
        return {}
    parts = {
        "version": VERSION,
        "content": content,
        "quantize": recipe.quantize.model_dump(mode="json"),
        "world": execution_environment(world),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / "untrained" / f"{key}.json"
    known = on_main(world, lambda: read_cache(path, world))
    if known is None:
        say(world, "predicting the test rows with the untrained base model, as a baseline")
        known = dict(query_base(recipe, model, tokenizer, given, world))
        reset_peak_bytes()  # a run's is that of what it trains
        on_main(world, lambda: write_cache(path, known))
    return {name: to_predictions(values, given) for name, values in known.items()}


def read_cache(path: Path, world: World) -> Any:
    """Return the cached predictions, or None."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        say(world, f"note: {path} is damaged and is written again")
        return None


def write_cache(path: Path, known: Mapping[str, Any]) -> None:
    """Write the predictions to the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, known)


def to_predictions(values: Mapping[str, Any], given: EvalSplit) -> Predictions:
    """Return the cached values of one baseline as predictions."""
    outputs = [np.asarray(output, dtype=np.float32) for output in values["outputs"]]
    labels = list(given.examples["labels"])
    rest = {name: values[name] for name in ("texts", "notes", "samples")}
    return Predictions(labels, outputs, values["loss"], **rest)


def query_base(
    recipe: Recipe, model: Source, tokenizer: Any, given: EvalSplit, world: World
) -> Answers:
    """Yield every baseline that the task and the model support."""
    task = recipe.task.embedding_baseline
    if task is not None:
        config = AutoConfig.from_pretrained(model.location)
        if not config.is_encoder_decoder:  # whose states are of two kinds
            found = predict_by_embedding(recipe, task, model, tokenizer, given, world)
            if found is not None:
                yield task.untrained_baseline_name, to_json(Predictions([], found, None))
        how = task.zero_shot_settings()
        if how is not None and is_causal(config) and tokenizer.is_fast:
            yield from predict_zero_shot(recipe, how, model, tokenizer, given, world)
    else:
        yield from predict_directly(recipe, model, tokenizer, given, world)


def to_json(predictions: Predictions) -> dict[str, Any]:
    """Return predictions as JSON values."""
    outputs = [np.asarray(output).tolist() for output in predictions.outputs]
    rest = {name: list(getattr(predictions, name)) for name in ("texts", "notes", "samples")}
    return {"outputs": outputs, "loss": predictions.loss, **rest}


def predict_directly(
    recipe: Recipe, model: Source, tokenizer: Any, given: EvalSplit, world: World
) -> Answers:
    """Yield the base model's outputs, loss and (if compared) texts on the rows, and the same with
    few-shot examples if the recipe sets them."""
    task = recipe.task
    base = load_model(recipe, model, tokenizer, given.names, world.precision, bare=True)
    found = predict(place_model(base, recipe), task, given.examples, world)
    if task.generation is not None and task.generation.untrained_baseline:
        found = replace(found, **generate_rows(recipe, base, given.rows, world)._asdict())
    yield UNTRAINED, to_json(found)
    if (behind := predict_few_shot(recipe, base, given, world)) is not None:
        yield behind[0], to_json(behind[1])


def predict_zero_shot(
    recipe: Recipe,
    how: ZeroShotSettings,
    model: Source,
    tokenizer: Any,
    given: EvalSplit,
    world: World,
) -> Answers:
    """Yield the classes that a causal language model predicts from prompts, without and with
    few-shot examples."""
    is_pair = "text_pair" in given.rows.column_names
    ways: dict[str, Prompts] = {}
    for shots in ([], sample_examples(how, given)):
        limits = recipe.data.max_length, max_positions(model)
        prompts = Prompts(how, given.names, tokenizer, shots, is_pair, *limits)
        ways[f"{len(prompts.shots)}-shot" if prompts.shots else ZERO_SHOT] = prompts
    likelihoods = Likelihoods(kind="likelihoods", answers_ids=ways[ZERO_SHOT].answers())
    base = load_base(likelihoods, recipe, model, tokenizer, (), world)
    for name, prompts in ways.items():
        found = predict_by_likelihood(base, likelihoods, prompts, how.calibrate, given, world)
        yield name, to_json(Predictions([], found, None))


def max_positions(model: Source) -> int | None:
    """Return the maximum number of tokens of the model; None if its configuration has none."""
    config = AutoConfig.from_pretrained(model.location)
    found = getattr(config, "max_position_embeddings", None)
    return None if found is None else int(found) - first_position(config)
