"""The forecast of a comparison: parameters, memory and time of each variant, before training."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.comparison.jobs import hashed
from peftkit.comparison.settings import Budget, Variant
from peftkit.comparison.workers import run_in_subprocess
from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, PeftkitError, RecipeError
from peftkit.hub.source import Source
from peftkit.records.record import ParameterCount
from peftkit.registry import Settings
from peftkit.runtime.matmul_speed import operations_a_second
from peftkit.storage.atomic_files import write_text

if TYPE_CHECKING:
    from torch import nn


class VariantForecast(Settings):
    """Parameters, memory and time of one variant's runs."""

    incompatibility: str | None = None
    """Why it cannot run."""
    parameters: ParameterCount | None = None
    memory_bytes: int | None = None
    """Estimated peak memory of a run."""
    run_seconds: float = 0.0
    """Lower bound: the time of the matrix products alone."""
    trial_seconds: float = 0.0


class Forecast(Settings):
    """The forecasts of all variants, and the rows of their runs by split."""

    rows: dict[str, int]
    notes: list[str]
    variants: dict[str, VariantForecast]


def load_forecast(
    variants: Sequence[Variant], budget: Budget, model: Source, data: Source, folder: Path
) -> Forecast:
    """The forecast that is cached in `folder`, or a new one from a process that reads and tokenizes
    the data, as each run does.

    Raises `DataError`, or `RecipeError` if no variant can run.
    """
    versions = [importlib.metadata.version(name) for name in ("peftkit", "peft", "transformers")]
    digests = [variant.recipe.digest(model, data) for variant in variants]
    key = hashed([digests, budget.model_dump(), versions])[:8]
    path = folder / f"forecast-{key}.json"
    if not path.is_file():
        forecast = run_in_subprocess(compute_forecast, variants, budget, model, data)
        write_text(path, forecast.model_dump_json(indent=1) + "\n")
    return Forecast.model_validate_json(path.read_text())


@dataclass(frozen=True)
class Workload:
    """The model, the data and the speed of the machine, which are the same for all variants."""

    model: Source
    names: tuple[str, ...]
    lengths: list[int]
    """Tokens of each training row."""
    operations_per_second: float
    precision: str


def compute_forecast(
    variants: Sequence[Variant], budget: Budget, model: Source, data: Source
) -> Forecast:
    """The forecast, from the data and the model's configuration."""
    from peftkit.loading.model import load_tokenizer
    from peftkit.preprocessing.tokenization import encode
    from peftkit.runtime.distributed import World

    recipe = variants[0].recipe
    world = World.enter(recipe.training)
    splits = recipe.splits(data)
    rows = {split: len(getattr(splits, split)) for split in ("train", "validation", "test")}
    check_rows(rows, budget)
    names = recipe.task.label_names(splits)
    examples = encode(recipe, splits, load_tokenizer(model.location, recipe.task), model, names)
    lengths = list(examples["train"]["length"])
    speed = operations_a_second(world.precision)
    workload = Workload(model, tuple(names), lengths, speed, world.precision)
    found = {variant.name: forecast_variant(variant, budget, workload) for variant in variants}
    if all(each.incompatibility for each in found.values()):
        faults = [Fault(name, each.incompatibility or "") for name, each in found.items()]
        raise RecipeError("no strategy of the comparison can run:", faults)
    return Forecast(rows=rows, notes=list(splits.notes), variants=found)


def check_rows(rows: dict[str, int], budget: Budget) -> None:
    """Raise `RecipeError` for an empty validation or test split, or a budget above the rows."""
    faults = []
    if not rows["validation"] and budget.trials:
        what = (
            "learning rates are chosen on a validation split, which is empty - set data.validation"
        )
        faults.append(Fault("budget.trials", what))
    if budget.rows is not None and budget.rows > rows["train"]:
        what = f"{budget.rows:,} of {rows['train']:,} training rows - use fewer, or null for all"
        faults.append(Fault("budget.rows", what))
    if not rows["test"]:
        what = "strategies are compared on the test split, which is empty - set data.test"
        faults.append(Fault("data.test", what))
    if faults:
        raise RecipeError("the comparison cannot run:", faults)


def forecast_variant(variant: Variant, budget: Budget, workload: Workload) -> VariantForecast:
    """The forecast of one variant, or why it cannot run."""
    from peftkit.loading.model import meta_model
    from peftkit.planning.plan import estimate, planned_micro_batch

    if variant.incompatibility is not None:
        return VariantForecast(incompatibility=variant.incompatibility)
    recipe, longest = variant.recipe, max(workload.lengths)
    try:
        module, parameters = meta_model(recipe, workload.model.location, workload.names)
        micro = planned_micro_batch(recipe)
        memory = estimate(recipe, module, parameters, micro, longest, workload.precision)
    except PeftkitError as error:
        reasons = [fault.what for fault in error.faults] or [error.message]
        return VariantForecast(incompatibility="; ".join(reasons))
    tokens = sum(workload.lengths) * num_epochs(recipe, workload)
    seconds = operations_per_token(module) * tokens / workload.operations_per_second
    return VariantForecast(
        parameters=parameters,
        memory_bytes=memory.total,
        run_seconds=seconds,
        trial_seconds=seconds * (budget.rows or len(workload.lengths)) / len(workload.lengths),
    )


def num_epochs(recipe: Recipe, workload: Workload) -> float:
    """How often a run reads the train split."""
    training = recipe.training
    if training.steps is None:
        return training.epochs
    return training.steps * training.batch_size / len(workload.lengths)


def operations_per_token(module: "nn.Module") -> int:
    """Floating-point operations of a training step per token, matrix products alone.

    For each weight of the blocks two forward, two backward if a gradient passes through its block,
    and two for the gradient of a trained weight.
    """
    from peftkit.models.architectures import blocks_of, runs_of_a_block
    from peftkit.planning.plan import blocks_with_gradient
    from peftkit.strategies.base import trainable

    blocks = blocks_of(module)
    weights = sum(p.numel() for _, block in blocks for p in block.parameters())
    weights *= runs_of_a_block(module)
    share = min(1.0, blocks_with_gradient(module) / max(len(blocks) * runs_of_a_block(module), 1))
    trained = sum(parameter.numel() for parameter in trainable(module).values())
    return int(2 * weights + 2 * weights * share + 2 * min(trained, weights))
