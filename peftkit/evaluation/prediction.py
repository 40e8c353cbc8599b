"""Predictions on encoded examples, longest first, without gradients, on one rank or several."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from peftkit.config.recipe import Recipe
from peftkit.loading.model import LoadedModel
from peftkit.preprocessing.batching import longest_first
from peftkit.runtime.distributed import World, gather
from peftkit.tasks.base import EvalSplit, Predictions, Task

MAX_TOKENS = 4096
"""Padded tokens per forward pass."""
INITIALIZATION_BATCH = 16
"""Examples per batch that a strategy initializes itself from."""


def predict(
    loaded: LoadedModel, task: Task, examples: Any, world: World, max_tokens: int = MAX_TOKENS
) -> Predictions:
    """Return the predictions on encoded `examples` (a dataset), in their order, on every rank."""
    batches = list(longest_first(list(examples["length"]), max_tokens))
    mine = batches[world.rank :: world.size]
    # sharded weights are gathered by all ranks together: those with a batch less do one again
    rounds = -(-len(batches) // world.size) if world.sharding in ("fsdp", "deepspeed") else 0
    filled = mine + batches[:1] * (rounds - len(mine))
    found = gather(world, list(predict_batches(loaded, task, examples, filled))[: len(mine)])
    return merge_batches(found, list(examples["labels"]))


class BatchPrediction(NamedTuple):
    """The outputs of one batch."""

    indices: Sequence[int]
    outputs: list[np.ndarray]
    """What the task keeps of each example."""
    loss: float
    """Summed over all labeled positions."""
    known: int
    """Number of labeled positions."""


def merge_batches(found: Iterable[BatchPrediction], labels: Sequence[Any]) -> Predictions:
    """Return the predictions of all batches in the order of the examples."""
    batches = list(found)
    outputs = {
        index: output
        for batch in batches
        for index, output in zip(batch.indices, batch.outputs, strict=True)
    }
    known = sum(batch.known for batch in batches)
    loss = sum(batch.loss for batch in batches) / known if known else None
    return Predictions(labels, [outputs[index] for index in range(len(outputs))], loss)


def predict_batches(
    loaded: LoadedModel, task: Task, examples: Any, batches: Iterable[Sequence[int]]
) -> Iterator[BatchPrediction]:
    """Yield the outputs of each batch of `examples`."""
    module, batcher = loaded.module, loaded.batcher
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for indices in batches:
                chosen = [examples[index] for index in indices]
                batch = batcher(chosen)
                labels = batch.pop("labels").to(device)
                logits = task.logits(module(**move_to_device(batch, device)))
                yield BatchPrediction(
                    indices,
                    task.outputs(logits, labels, batcher.sizes(chosen)),
                    float(task.loss(logits, labels, smoothing=0.0)),
                    task.known(labels),
                )
    finally:
        module.train(was_training)


def move_to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on `device`."""
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


def initialization_batches(
    recipe: Recipe, loaded: LoadedModel, examples: Any
) -> Iterator[dict[str, Any]]:
    """Yield batches of the train split in a seeded order, without labels; the same on every
    rank."""
    train, device = examples["train"], next(loaded.module.parameters()).device
    generator = torch.Generator().manual_seed(recipe.training.seed)
    order = torch.randperm(len(train), generator=generator).tolist()
    for start in range(0, len(order), INITIALIZATION_BATCH):
        chosen = [train[index] for index in order[start : start + INITIALIZATION_BATCH]]
        batch = move_to_device(loaded.batcher(chosen), device)
        batch.pop("labels")
        yield batch


def prediction_rows(
    task: Task, predictions: Predictions, given: EvalSplit
) -> Iterator[dict[str, Any]]:
    """Yield the lines of `predictions.jsonl`: name and hash of the row, and its prediction."""
    there = [role for role in task.inputs if role in given.rows.column_names]
    texts = [given.rows[role] for role in there]
    lines = task.prediction_lines(predictions, given)
    for index, (row, line) in enumerate(zip(given.rows["row"], lines, strict=True)):
        text = "\x1f".join(str(column[index]) for column in texts)
        yield {"row": row, "hash": hashlib.sha256(text.encode()).hexdigest()[:16], **line}
