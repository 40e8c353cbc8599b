"""The engine: packed or padded batches and the form of attention, the fastest as measured."""

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
from peftkit.training.batch_size import try_pass
from peftkit.training.checkpoints import numbered

ATTENTION: dict[Used, str] = {"packed": PACKED, "packed_sdpa": PACKED_SDPA, "padded": "sdpa"}
DEFAULT: Used = "packed"
ROUNDS = 3
"""Batches that every engine is timed on, in turns."""
FEWEST_PASSES = 100
"""A run of fewer passes is not worth the nine that measuring takes."""
LEAST_OPERATIONS = 1e10
"""Of a pass that a stopwatch can tell from another: some tens of milliseconds."""
MARGIN = 1.05
"""How much faster another engine must be than the default: less may be noise."""


def using(assembled: LoadedModel, engine: Used) -> LoadedModel:
    """`assembled` on another engine; its model is switched in place.

    Only between engines of a model that was assembled to be packed: it reads by positions.
    """
    base = next(m for m in assembled.module.modules() if isinstance(m, PreTrainedModel))
    base.set_attn_implementation(ATTENTION[engine])
    return replace(assembled, batcher=replace(assembled.batcher, packed=engine != "padded"))


def engine_of_run(
    recipe: Recipe, assembled: LoadedModel, train: Any, micro: int, folder: RunDir, world: World
) -> Engine:
    """The engine that the run began with, or else the one for it, kept in its folder: the same on
    all ranks."""

    def settle() -> Engine:
        known = folder.description().get("engine")
        if known is not None:
            return Engine.model_validate(known)
        if numbered(folder.checkpoints):
            packed = assembled.batcher.packed
            return Engine(
                used=DEFAULT if packed else "padded", reason="begun before engines were measured"
            )
        found = choose(recipe, assembled, train, micro, folder, world)
        folder.describe(engine=found.model_dump())
        return found

    return on_main(world, settle)


def choose(
    recipe: Recipe, assembled: LoadedModel, train: Any, micro: int, folder: RunDir, world: World
) -> Engine:
    """The fastest engine for runs like this one, as once measured on this machine.

    The choice is kept in peftkit's cache, so that the seeds of a strategy share it. It changes
    results by rounding only. A run that is too small to be timed is always packed, whatever the
    machine is busy with.
    """
    if not assembled.batcher.packed:
        return Engine(used="padded", reason="this run cannot be packed, or may not")
    if recipe.training.packing == "on":
        return Engine(used=DEFAULT, reason="training.packing=on")
    if operations(assembled, train, micro) < LEAST_OPERATIONS:
        return Engine(used=DEFAULT, reason="too small to be timed")
    parts = likeness(recipe, folder, micro, world)
    known = measurements.find("engine", **parts)
    if known is not None:
        return Engine.model_validate({**known, "reason": "the fastest as measured before"})
    if passes(recipe, len(train), micro, world) < FEWEST_PASSES:
        return Engine(used=DEFAULT, reason="too few steps to be worth measuring")
    speeds = measure(recipe, assembled, train, micro)
    found = Engine(used=fastest(speeds), reason="the fastest as measured", tokens_per_second=speeds)
    told = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    say(world, f"note: {found.used} batches are used (tokens/s forward and back: {told})")
    return Engine.model_validate(measurements.keep("engine", found.model_dump(), **parts))


def operations(assembled: LoadedModel, train: Any, micro: int) -> float:
    """Roughly those of a forward and a backward pass: six a weight and token."""
    tokens = statistics.fmean(train["length"]) * micro
    return 6 * assembled.parameters.total * tokens


def passes(recipe: Recipe, rows: int, micro: int, world: World) -> int:
    """Forward passes of a rank in the whole run."""
    training = recipe.training
    steps = training.steps or math.ceil(training.epochs * (rows // training.batch_size))
    return steps * training.batch_size // world.size // micro


def likeness(recipe: Recipe, folder: RunDir, micro: int, world: World) -> dict[str, Any]:
    """What runs share that are as fast on the same engine: all but seeds, rates and lengths of
    training."""
    said, training = folder.description(), recipe.training
    return {
        "model": said["model"]["identity"],
        "data": said["data"]["identity"],
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


def measure(recipe: Recipe, assembled: LoadedModel, train: Any, micro: int) -> dict[Used, float]:
    """Tokens a second of each engine, from the batches whose speed is in the middle.

    Engines take turns on batches that none has seen, as in training, where a packed row's length
    hardly comes again. The model is left on the default.
    """
    engines = [name for name in ATTENTION if name != "packed_sdpa" or not torch.cuda.is_available()]
    speeds: dict[Used, list[float]] = {name: [] for name in engines}
    try:
        for rows in sample(recipe, train, micro):
            tokens = sum(len(row["input_ids"]) for row in rows)
            for name in engines:
                speeds[name].append(tokens / seconds_of(recipe, using(assembled, name), rows))
    finally:
        using(assembled, DEFAULT)
    return {name: statistics.median(found) for name, found in speeds.items()}


def sample(recipe: Recipe, train: Any, micro: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Some micro-batches of the first epoch, evenly spread over it."""
    training = recipe.training
    grouped = training.order == "length_grouped"
    order = list(Order(list(train["length"]), training.batch_size, training.seed, grouped))
    whole = len(order) // micro
    for turn in range(ROUNDS):
        start = turn * whole // ROUNDS * micro
        yield [train[index] for index in order[start : start + micro]]


def seconds_of(recipe: Recipe, assembled: LoadedModel, rows: Sequence[Any]) -> float:
    """A forward and a backward pass, timed."""
    begun = time.perf_counter()
    try_pass(recipe, assembled, rows)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def fastest(speeds: Mapping[Used, float]) -> Used:
    """The name of the fastest engine; the default, unless another is faster by the margin."""
    best = max(speeds, key=lambda name: speeds[name])
    return best if speeds[best] > MARGIN * speeds[DEFAULT] else DEFAULT
