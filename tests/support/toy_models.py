"""Toys: tiny models, made-up texts and a few optimizer steps, for tests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.evaluation.prediction import initialization_batches, move_to_device, predict
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source
from peftkit.loading.model import LoadedModel, load_model, load_tokenizer
from peftkit.preprocessing.tokenization import encode
from peftkit.records.artifact import write_config, write_manifest
from peftkit.runtime.distributed import World
from peftkit.strategies.base import trainable
from peftkit.training.optimizer import MasterWeightAdamW, lr_lambdas

torch.set_num_threads(1)  # toys are too small to share
ALONE = World(0, 1, 1, "fp32", "cpu", "none")
NAMES = ("sport", "food")


def toy(model: str = "tiny-bert", *overrides: str) -> Recipe:
    """The recipe `lora_tiny` with a tiny model and overrides; dropout off, so that runs compare."""
    quiet = ("training.dropout=0", "data.rows=80")
    return Recipe.load("lora_tiny", f"model={model}", *quiet, *overrides)


@cache
def rows(model: str, max_length: int = 32) -> dict[str, Any]:
    """The encoded splits of the made-up data, by the tokenizer of `model`."""
    recipe = toy(model, f"data.max_length={max_length}")
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    source = find_model(model)
    return encode(recipe, splits, load_tokenizer(source.location), source, NAMES)


def load_toy(recipe: Recipe, precision: str = "fp32", artifact: Path | None = None) -> LoadedModel:
    """The recipe's model, freshly adapted or with `artifact` in place."""
    source: Source = find_model(recipe.model)
    tokenizer = load_tokenizer(source.location)
    return load_model(recipe, source, tokenizer, NAMES, precision, artifact)


def merged_model(recipe: Recipe, made: LoadedModel, folder: Path) -> Any:
    """What was trained, saved and merged in `folder`, as transformers loads it."""
    source, artifact = find_model(recipe.model), folder / "artifact"
    artifact.mkdir()
    recipe.strategy.save(made.module, artifact)
    write_config(artifact, made.module)
    write_manifest(artifact, recipe, source, NAMES)
    peftkit.merge(artifact, folder / "merged", verify="off")
    return recipe.task.auto_class().from_pretrained(folder / "merged").eval()


@torch.no_grad()
def logits(made: LoadedModel, examples: Any) -> Tensor:
    """The logits of all examples, as one batch."""
    return call(made, examples).float()


def call(made: LoadedModel, examples: Any) -> Tensor:
    """A forward pass over `examples`, in the mode the model is in."""
    batch = made.batcher([examples[i] for i in range(len(examples))])
    batch.pop("labels")
    return made.module(**batch).logits


@dataclass
class Trained:
    """What `train` saw: each trainable tensor's largest gradient, and its value before."""

    gradients: dict[str, float]
    before: dict[str, Tensor]
    master_weights: Mapping[str, Tensor]
    losses: list[float]


def train(recipe: Recipe, made: LoadedModel, steps: int = 5, lr: float = 1e-2) -> Trained:
    """Plain training with one evaluation after the second step."""
    examples, module, strategy = rows(recipe.model), made.module, recipe.strategy
    strategy.prepare(module, lambda: initialization_batches(recipe, made, examples))
    optimizer = MasterWeightAdamW(
        trainable(module).items(), lr, 0.0, 1.0, strategy.lr_multipliers(module)
    )
    optimizer.training_hook = strategy.training_hook(module, steps)
    rates = LambdaLR(optimizer, lr_lambdas(optimizer, "constant", 0, steps))
    before = {name: m.detach().clone() for name, m in optimizer.master_weights.items()}
    seen = Trained({name: 0.0 for name in before}, before, optimizer.master_weights, [])
    for step, batch in enumerate(batches(made, examples["train"], steps)):
        module.train()
        labels = batch.pop("labels")
        loss = recipe.task.loss(module(**batch).logits, labels, 0.0) / len(labels)
        if optimizer.training_hook is not None:
            loss = loss + optimizer.training_hook.penalty()
        loss.backward()
        seen.losses.append(loss.item())
        for name, parameter in trainable(module).items():
            if parameter.grad is not None:
                largest = float(parameter.grad.abs().max())
                seen.gradients[name] = max(seen.gradients[name], largest)
        optimizer.step()
        rates.step()
        if step == 1:
            predict(made, recipe.task, examples["validation"], ALONE)
    module.eval()
    return seen


def batches(made: LoadedModel, examples: Any, steps: int) -> Iterator[dict[str, Any]]:
    """`steps` batches of eight examples each."""
    for step in range(steps):
        chosen = [examples[(8 * step + i) % len(examples)] for i in range(8)]
        yield move_to_device(made.batcher(chosen), torch.device("cpu"))


def probabilities(recipe: Recipe, made: LoadedModel) -> np.ndarray:
    """What `evaluation.predict` says of the test split."""
    return predict(made, recipe.task, rows(recipe.model)["test"], ALONE).probabilities
