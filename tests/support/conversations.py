"""Talks: tiny language models, made-up conversations and pairs of texts, for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.config.recipe import Recipe
from peftkit.evaluation.prediction import move_to_device
from peftkit.hub.resolve import find_model
from peftkit.loading.model import LoadedModel, load_model, load_tokenizer

torch.set_num_threads(1)
CAUSAL = ("tiny-llama", "tiny-gpt2", "tiny-qwen2", "tiny-qwen3", "tiny-mistral", "tiny-gemma3")
WITH_ENCODER = ("tiny-t5", "tiny-bart", "tiny-marian")
CHAT = "{kind: instruction_tuning, template: plain}"
TRANSLATION = "{kind: translation, template: plain, target_length: 16}"
QUESTIONS = {
    "question": ["the dog", "a storm", "rain and cloud and wind", "goal"],
    "answer": ["a horse was near the dog", "rain", "soup bread", "the team match near a goal team"],
}
PAIRS = {
    "source": ["the dog was near", "bread", "rain and soup and the cheese", "goal team"],
    "target": ["a horse", "the soup and cheese near bread", "cloud", "match team goal"],
}


def talk(model: str, task: str, *overrides: str) -> Recipe:
    """A recipe for a tiny model and a task whose answers are text."""
    quiet = ("training.dropout=0", "data.max_length=64", "training.precision=fp32")
    return Recipe.load("lora_tiny", f"model={model}", f"task={task}", *quiet, *overrides)


def made(recipe: Recipe, bare: bool = False) -> LoadedModel:
    """The recipe's model, freshly adapted or as the base is."""
    source = find_model(recipe.model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    return load_model(recipe, source, tokenizer, (), "fp32", bare=bare)


def encoded(
    recipe: Recipe, model: LoadedModel, rows: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """The rows as examples."""
    found = recipe.task.encode(rows, model.tokenizer, (), recipe.data.max_length)
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def summed(recipe: Recipe, model: LoadedModel, examples: Sequence[Any]) -> tuple[Tensor, int]:
    """The summed loss of one batch of examples, and over how many tokens."""
    batch = move_to_device(model.batcher(examples), torch.device("cpu"))
    labels = batch.pop("labels")
    logits = recipe.task.logits(model.module(**batch))
    return recipe.task.loss(logits, labels, 0.0), recipe.task.known(labels)


def stirred(model: LoadedModel) -> LoadedModel:
    """The model with all that trains moved a little, so that an adapter is not the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model
