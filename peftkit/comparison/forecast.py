"""The outlook: what a comparison will take, before anything is trained."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.comparison.jobs import hashed
from peftkit.comparison.settings import Budget, Way
from peftkit.comparison.workers import elsewhere
from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, PeftkitError, RecipeError
from peftkit.hub.source import Source
from peftkit.records.record import ParameterCount
from peftkit.registry import Settings
from peftkit.runtime.matmul_speed import operations_a_second
from peftkit.storage.atomic_files import write_text

if TYPE_CHECKING:
    from torch import nn


class Prospect(Settings):
    """What one strategy will take."""

    refused: str | None = None
    """Why it cannot be run."""
    parameters: ParameterCount | None = None
    memory_bytes: int | None = None
    """A first estimate of a run's peak."""
    run_seconds: float = 0.0
    """At least: its products of matrices alone."""
    trial_seconds: float = 0.0


class Outlook(Settings):
    """What all will take, and the rows that runs have."""

    rows: dict[str, int]
    notes: list[str]
    prospects: dict[str, Prospect]


def look(ways: Sequence[Way], budget: Budget, model: Source, data: Source, folder: Path) -> Outlook:
    """The outlook, from `folder` where nothing has changed since it was written there, else from a
    process that reads and encodes the data, as every run would have to.

    Raises `DataError`, or `RecipeError` where no strategy can be run.
    """
    versions = [importlib.metadata.version(name) for name in ("peftkit", "peft", "transformers")]
    digests = [way.recipe.digest(model, data) for way in ways]
    key = hashed([digests, budget.model_dump(), versions])[:8]
    path = folder / f"outlook-{key}.json"
    if not path.is_file():
        found = elsewhere(looked, ways, budget, model, data)
        write_text(path, found.model_dump_json(indent=1) + "\n")
    return Outlook.model_validate_json(path.read_text())


@dataclass(frozen=True)
class Ground:
    """What the strategies' prospects are reckoned from."""

    model: Source
    names: tuple[str, ...]
    lengths: list[int]
    """Tokens of each training row."""
    speed: float
    """Operations a second."""
    precision: str


def looked(ways: Sequence[Way], budget: Budget, model: Source, data: Source) -> Outlook:
    """The outlook, from the data and the model's configuration."""
    from peftkit.loading.model import load_tokenizer
    from peftkit.preprocessing.tokenization import encode
    from peftkit.runtime.distributed import World

    recipe = ways[0].recipe
    world = World.enter(recipe.training)
    splits = recipe.splits(data)
    rows = {split: len(getattr(splits, split)) for split in ("train", "validation", "test")}
    check_rows(rows, budget)
    names = recipe.task.label_names(splits)
    examples = encode(recipe, splits, load_tokenizer(model.location, recipe.task), model, names)
    lengths = list(examples["train"]["length"])
    speed = operations_a_second(world.precision)
    ground = Ground(model, tuple(names), lengths, speed, world.precision)
    prospects = {way.name: prospect(way, budget, ground) for way in ways}
    if all(each.refused for each in prospects.values()):
        faults = [Fault(name, each.refused or "") for name, each in prospects.items()]
        raise RecipeError("no strategy of the comparison can be run:", faults)
    return Outlook(rows=rows, notes=list(splits.notes), prospects=prospects)


def check_rows(rows: dict[str, int], budget: Budget) -> None:
    """Refuse data that have nothing to choose or to score on, and a budget beyond them."""
    faults = []
    if not rows["validation"] and budget.trials:
        what = "rates are chosen on a validation split, and there is none - set data.validation"
        faults.append(Fault("budget.trials", what))
    if budget.rows is not None and budget.rows > rows["train"]:
        what = f"{budget.rows:,} of {rows['train']:,} training rows - use fewer, or null for all"
        faults.append(Fault("budget.rows", what))
    if not rows["test"]:
        what = "strategies are compared on test rows, and there are none - set data.test"
        faults.append(Fault("data.test", what))
    if faults:
        raise RecipeError("the comparison cannot be made:", faults)


def prospect(way: Way, budget: Budget, ground: Ground) -> Prospect:
    """What one strategy takes, or why it cannot be run."""
    from peftkit.loading.model import meta_model
    from peftkit.planning.plan import estimate, planned_micro_batch

    if way.refused is not None:
        return Prospect(refused=way.refused)
    recipe, longest = way.recipe, max(ground.lengths)
    try:
        module, parameters = meta_model(recipe, ground.model.location, ground.names)
        micro = planned_micro_batch(recipe)
        memory = estimate(recipe, module, parameters, micro, longest, ground.precision)
    except PeftkitError as error:
        reasons = [fault.what for fault in error.faults] or [error.message]
        return Prospect(refused="; ".join(reasons))
    operations = operations_a_token(module) * sum(ground.lengths) * passes(recipe, ground)
    seconds = operations / ground.speed
    return Prospect(
        parameters=parameters,
        memory_bytes=memory.total,
        run_seconds=seconds,
        trial_seconds=seconds * (budget.rows or len(ground.lengths)) / len(ground.lengths),
    )


def passes(recipe: Recipe, ground: Ground) -> float:
    """How often a run reads the train split."""
    training = recipe.training
    if training.steps is None:
        return training.epochs
    return training.steps * training.batch_size / len(ground.lengths)


def operations_a_token(module: "nn.Module") -> int:
    """Forward two a weight of the blocks, back two more where a gradient passes through, and two
    for the gradient of a trained one."""
    from peftkit.models.architectures import blocks_of, runs_of_a_block
    from peftkit.planning.plan import blocks_with_gradient
    from peftkit.strategies.base import trainable

    blocks = blocks_of(module)
    weights = sum(p.numel() for _, block in blocks for p in block.parameters())
    weights *= runs_of_a_block(module)
    there = min(1.0, blocks_with_gradient(module) / max(len(blocks) * runs_of_a_block(module), 1))
    trained = sum(parameter.numel() for parameter in trainable(module).values())
    return int(2 * weights + 2 * weights * there + 2 * min(trained, weights))
