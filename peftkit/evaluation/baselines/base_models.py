"""Bases: the model as it is before a run, loaded to be asked what the run's task does not ask."""

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
    """The recipe's base without training, quantized as the run's is, to be asked what `task` asks.

    The run's strategy has no say: it may refuse the other task.
    """
    asked = recipe.model_copy(update={"task": task, "strategy": Full()})
    return place_model(
        load_model(asked, model, tokenizer, names, world.precision, bare=True), recipe
    )


def place_model(assembled: LoadedModel, recipe: Recipe) -> LoadedModel:
    """The model where it computes."""
    if torch.cuda.is_available() and not recipe.quantize.bits:  # bitsandbytes places its own
        assembled.module.to("cuda")
    return assembled
