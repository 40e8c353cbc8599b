"""The plan: what a run would do, from the model's configuration alone; no weights are loaded."""

from pathlib import Path
from typing import Any

from peftkit.recipe import Recipe
from peftkit.record import ParameterCount
from peftkit.registry import Settings
from peftkit.sources import Source, find_model, shipped_config

PROCESS_BYTES = 700 * 2**20
"""Python with torch, transformers and peft imported, measured (benchmarks/LOG.md)."""
BYTES = {"bf16": 2, "fp32": 4}


class Memory(Settings):
    """A first estimate of the training's peak, in bytes, by part."""

    process: int
    """The interpreter and its libraries (0 on a GPU)."""
    weights: int
    """Base, head and adapter at rest."""
    gradients: int
    """Of what trains, in fp32."""
    optimizer: int
    """fp32 masters and AdamW's two moments of what trains."""
    activations: int
    """Kept for the backward pass of the largest micro-batch."""

    @property
    def total(self) -> int:
        """All parts together."""
        return self.process + self.weights + self.gradients + self.optimizer + self.activations


class Plan(Settings):
    """What a run would do."""

    name: str
    parameters: ParameterCount
    memory: Memory
    micro_batch_size: int
    steps: int | None
    """Optimizer steps; null where the number of rows is not known without the data."""
    launch: str
    """The command that runs it."""
    notes: list[str]


def plan(recipe: Recipe) -> Plan:
    """Parameters, memory, steps and the launch line of `recipe`, without loading weights.

    Raises `RecipeError` for what cannot work: targets that match nothing, a missing head, ...
    """
    from peftkit.model import blueprint
    from peftkit.world import resting_precision

    folder = config_folder(recipe)
    precision = resting_precision(recipe.training.precision)
    _, parameters = blueprint(recipe, folder, ["0", "1"])
    micro = planned_micro_batch(recipe)
    memory = estimate(recipe, folder, parameters, micro, recipe.data.max_length, precision)
    notes = [f"computes in {precision}", "two labels assumed; the data are not read"]
    return Plan(
        name=recipe.name,
        parameters=parameters,
        memory=memory,
        micro_batch_size=micro,
        steps=recipe.training.steps,
        launch=f"accelerate launch peftkit/run.py recipe={recipe.name}",
        notes=notes,
    )


def config_folder(recipe: Recipe) -> str:
    """A folder with the model's config.json: the model itself, or the one peftkit ships."""
    shipped = shipped_config(recipe.model)
    return str(shipped.parent) if shipped else find_model(recipe.model).location


def planned_micro_batch(recipe: Recipe) -> int:
    """The micro-batch of one rank before anything is probed."""
    from peftkit.probe import largest_divisor

    training = recipe.training
    if training.micro_batch_size != "auto":
        return training.micro_batch_size
    most = max(1, training.max_tokens // recipe.data.max_length)
    return largest_divisor(training.batch_size, most)


def predicted_peak_bytes(
    recipe: Recipe, model: Source, micro: int, longest: int, precision: str
) -> int:
    """The estimate for a run whose micro-batch and longest row are known."""
    from peftkit.model import blueprint

    _, parameters = blueprint(recipe, model.location, ["0", "1"])
    return estimate(recipe, model.location, parameters, micro, longest, precision).total


def estimate(
    recipe: Recipe, folder: str, parameters: ParameterCount, micro: int, longest: int, precision: str
) -> Memory:
    """Peak memory by part, from counts and the shape of the blocks."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    size = BYTES[precision]
    base = parameters.base * (recipe.quantize.bits / 8 if recipe.quantize.bits else size)
    return Memory(
        process=0 if torch.cuda.is_available() else PROCESS_BYTES,
        weights=int(base + 4 * parameters.head + size * parameters.adapter),
        gradients=4 * parameters.trainable,
        optimizer=12 * parameters.trainable,
        activations=activation_bytes(recipe, config, micro, longest, size),
    )


def activation_bytes(recipe: Recipe, config: Any, micro: int, longest: int, size: int) -> int:
    """Kept activations: a dozen hidden states, the feed-forward's, and L x L probabilities a head."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    tokens = micro * longest
    per_layer = tokens * (12 * hidden + 3 * inner) * size
    per_layer += 3 * micro * config.num_attention_heads * longest**2 * size
    if recipe.training.gradient_checkpointing:
        return int(tokens * hidden * size * layers + per_layer)
    return int(per_layer * layers)
