"""The base model without training, loaded for a baseline's task."""

from collections.abc import Sequence
from typing import Any

import torch

from peftkit.config.recipe import Recipe
from peftkit.hub.source import Source
from peftkit.loading.model import LoadedModel, load_model
from peftkit.runtime.distributed import World
from peftkit.strategies.full import Full
from peftkit.tasks.base import Task


def load_base(
    task: Task, recipe: Recipe, model: Source, tokenizer: Any, names: Sequence[str], world: World
) -> LoadedModel:
    """Return the recipe's base model without training, quantized as in the run, for `task`.

    The run's strategy is not used: it may not support the other task.
    """
    base_recipe = recipe.model_copy(update={"task": task, "strategy": Full()})
    return place_model(
        load_model(base_recipe, model, tokenizer, names, world.precision, bare=True), recipe
    )


def place_model(loaded: LoadedModel, recipe: Recipe) -> LoadedModel:
    """Move the model to the device it computes on."""
    if torch.cuda.is_available() and not recipe.quantize.bits:  # bitsandbytes places its own
        loaded.module.to("cuda")
    return loaded
