"""Evaluation: a model's word on examples, longest first, without gradients, on one rank or many."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from peftkit.batching import longest_first
from peftkit.model import Assembled
from peftkit.tasks import Predictions, Task
from peftkit.world import World, gathered

MAX_TOKENS = 4096
"""Padded tokens a forward pass in prediction."""


def predict(
    assembled: Assembled, task: Task, examples: Any, world: World, max_tokens: int = MAX_TOKENS
) -> Predictions:
    """What the model says of encoded `examples` (a data set), in their order, on every rank."""
    batches = list(longest_first(list(examples["length"]), max_tokens))
    mine = batches[world.rank :: world.size]
    # sharded weights are gathered by all ranks together: those with a batch less do one again
    rounds = -(-len(batches) // world.size) if world.sharding in ("fsdp", "deepspeed") else 0
    filled = mine + batches[:1] * (rounds - len(mine))
    found = gathered(world, list(forward(assembled, task, examples, filled))[: len(mine)])
    labels = np.asarray(examples["labels"], dtype=np.int64)
    if not found:
        return Predictions(labels, np.zeros((0, 0)), None)
    order = np.argsort(np.concatenate([indices for indices, _, _ in found]), kind="stable")
    known = int((labels >= 0).sum())
    loss = sum(loss for _, _, loss in found) / known if known else None
    return Predictions(labels, np.concatenate([p for _, p, _ in found])[order], loss)


def forward(
    assembled: Assembled, task: Task, examples: Any, batches: Iterable[Sequence[int]]
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """For each batch its indices, the probabilities (batch, classes) and the summed loss."""
    module = assembled.module
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for indices in batches:
                batch = assembled.batcher([examples[index] for index in indices])
                labels = batch.pop("labels").to(device)
                logits = module(**on_device(batch, device)).logits
                loss = task.loss(logits, labels, smoothing=0.0)
                yield np.asarray(indices), task.probabilities(logits).cpu().numpy(), float(loss)
    finally:
        module.train(was_training)


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch's tensors on `device`."""
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


def prediction_rows(
    splits: Any, predictions: Predictions, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Lines of `predictions.jsonl`: which row, the label's name, the probabilities in id order."""
    texts = [
        splits.test[role] for role in ("text", "text_pair") if role in splits.test.column_names
    ]
    for index, row in enumerate(splits.test["row"]):
        said = "\x1f".join(str(column[index]) for column in texts)
        label = predictions.label_ids[index]
        yield {
            "row": row,
            "hash": hashlib.sha256(said.encode()).hexdigest()[:16],
            "label": names[label] if label >= 0 else None,
            "predicted": names[int(predictions.probabilities[index].argmax())],
            "probabilities": [round(float(p), 6) for p in predictions.probabilities[index]],
        }
