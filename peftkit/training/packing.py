"""The batch layout: packed or padded, and the form of attention, whichever is measured fastest."""

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from peftkit.config.recipe import Recipe
from peftkit.loading.model import LoadedModel
from peftkit.models.packed_attention import PACKED, PACKED_SDPA
from peftkit.preprocessing.batching import Order
from peftkit.records.record import Engine, Used
from peftkit.records.run_dir import RunDir
from peftkit.runtime import measurements
from peftkit.runtime.distributed import World, on_main, say
from peftkit.training.batch_size import forward_and_backward
from peftkit.training.checkpoints import list_checkpoints

ATTENTION: dict[Used, str] = {"packed": PACKED, "packed_sdpa": PACKED_SDPA, "padded": "sdpa"}
DEFAULT: Used = "packed"
NUM_ROUNDS = 3
"""Batches on which every layout is timed in turn."""
MIN_PASSES = 100
"""A run of fewer passes does not repay the nine that the measurement takes."""
MIN_OPERATIONS = 1e10
"""Operations of a pass that can be timed reliably: some tens of milliseconds."""
MARGIN = 1.05
"""How much faster than the default another layout must be: less may be noise."""


def with_engine(loaded: LoadedModel, engine: Used) -> LoadedModel:
    """`loaded` with another layout; the attention of its model is switched in place.

    Only for a model that was loaded to be packed, whose head reads by position.
    """
    base = next(m for m in loaded.module.modules() if isinstance(m, PreTrainedModel))
    base.set_attn_implementation(ATTENTION[engine])
    return replace(loaded, batcher=replace(loaded.batcher, packed=engine != "padded"))


def select_engine(
    recipe: Recipe, loaded: LoadedModel, train: Any, micro: int, folder: RunDir, world: World
) -> Engine:
    """The layout that the run began with, or else the fastest, stored in its directory; the same on
    all ranks."""

    def select() -> Engine:
        known = folder.description().get("engine")
        if known is not None:
            return Engine.model_validate(known)
        if list_checkpoints(folder.checkpoints):
            packed = loaded.batcher.packed
            return Engine(
                used=DEFAULT if packed else "padded",
                reason="started before batch layouts were measured",
            )
        found = choose_engine(recipe, loaded, train, micro, folder, world)
        folder.describe(engine=found.model_dump())
        return found

    return on_main(world, select)


def choose_engine(
    recipe: Recipe, loaded: LoadedModel, train: Any, micro: int, folder: RunDir, world: World
) -> Engine:
    """The fastest layout for runs like this one, as once measured on this machine.

    The choice is cached, so that the seeds of a strategy share it; it changes results by rounding
    only. A run that is too small to be timed is always packed, whatever the load of the machine.
    """
    if not loaded.batcher.packed:
        return Engine(used="padded", reason="packing is unsupported or disabled for this run")
    if recipe.training.packing == "on":
        return Engine(used=DEFAULT, reason="training.packing=on")
    if operations_per_pass(loaded, train, micro) < MIN_OPERATIONS:
        return Engine(used=DEFAULT, reason="too small to be timed")
    parts = cache_key(recipe, folder, micro, world)
    known = measurements.find("engine", **parts)
    if known is not None:
        return Engine.model_validate({**known, "reason": "the fastest as measured earlier"})
    if num_passes(recipe, len(train), micro, world) < MIN_PASSES:
        return Engine(used=DEFAULT, reason="too few steps to measure")
    speeds = measure_engines(recipe, loaded, train, micro)
    found = Engine(
        used=fastest_engine(speeds),
        reason="the fastest as measured",
        tokens_per_second=speeds,
    )
    rates = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    say(world, f"note: {found.used} batches are used (tokens/s forward and backward: {rates})")
    return Engine.model_validate(measurements.keep("engine", found.model_dump(), **parts))


def operations_per_pass(loaded: LoadedModel, train: Any, micro: int) -> float:
    """Approximate floating-point operations of a forward and a backward pass: six per weight and
    token."""
    tokens = statistics.fmean(train["length"]) * micro
    return 6 * loaded.parameters.total * tokens


def num_passes(recipe: Recipe, rows: int, micro: int, world: World) -> int:
    """Forward passes of a rank over the whole run."""
    training = recipe.training
    steps = training.steps or math.ceil(training.epochs * (rows // training.batch_size))
    return steps * training.batch_size // world.size // micro


def cache_key(recipe: Recipe, folder: RunDir, micro: int, world: World) -> dict[str, Any]:
    """What runs that share a layout have in common: all but seeds, learning rates and training
    length."""
    description, training = folder.description(), recipe.training
    return {
        "model": description["model"]["identity"],
        "data": description["data"]["identity"],
        "max_length": recipe.data.max_length,
        "task": recipe.task.kind,
        "strategy": recipe.strategy.to_dict(),
        "quantize": recipe.quantize.to_dict(),
        "training": [training.batch_size, training.order, training.gradient_checkpointing],
        "micro": micro,
        "ranks": [world.size, world.sharding],
        "threads": world.threads,
        "precision": world.precision,
    }


def measure_engines(
    recipe: Recipe, loaded: LoadedModel, train: Any, micro: int
) -> dict[Used, float]:
    """Tokens per second of each layout, the median over batches.

    Each batch is new to all layouts, as in training, where the length of a packed row rarely
    repeats. The model is left on the default layout.
    """
    engines = [name for name in ATTENTION if name != "packed_sdpa" or not torch.cuda.is_available()]
    speeds: dict[Used, list[float]] = {name: [] for name in engines}
    try:
        for rows in sample_micro_batches(recipe, train, micro):
            tokens = sum(len(row["input_ids"]) for row in rows)
            for name in engines:
                speeds[name].append(tokens / time_pass(recipe, with_engine(loaded, name), rows))
    finally:
        with_engine(loaded, DEFAULT)
    return {name: statistics.median(found) for name, found in speeds.items()}


def sample_micro_batches(
    recipe: Recipe, train: Any, micro: int
) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Micro-batches of the first epoch, evenly spaced."""
    training = recipe.training
    grouped = training.order == "length_grouped"
    order = list(Order(list(train["length"]), training.batch_size, training.seed, grouped))
    whole = len(order) // micro
    for turn in range(NUM_ROUNDS):
        start = turn * whole // NUM_ROUNDS * micro
        yield [train[index] for index in order[start : start + micro]]


def time_pass(recipe: Recipe, loaded: LoadedModel, rows: Sequence[Any]) -> float:
    """The seconds of a forward and a backward pass."""
    started = time.perf_counter()
    forward_and_backward(recipe, loaded, rows)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def fastest_engine(speeds: Mapping[Used, float]) -> Used:
    """The fastest layout; the default, unless another is faster by `MARGIN`."""
    best = max(speeds, key=lambda name: speeds[name])
    return best if speeds[best] > MARGIN * speeds[DEFAULT] else DEFAULT
