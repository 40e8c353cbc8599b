"""What was trained, taken out of a run's model: tensors, and where `load.py` attaches them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from peftkit.architectures import head_names, unwrapped
from peftkit.disk import write_json
from peftkit.exporting.load import TRAINED
from peftkit.layouts import ARCHITECTURES
from peftkit.model import Assembled
from peftkit.parameters import own_parameters
from peftkit.prefixes import states_of
from peftkit.recipe import Recipe
from peftkit.sources import sha256_of
from peftkit.strategies import unwrap_heads


class Trained:
    """The trained parts of a run's model; the model itself is not kept."""

    @torch.no_grad()  # an LSTM rounds in its own way where gradients are wanted
    def __init__(self, recipe: Recipe, assembled: Assembled) -> None:
        module: Any = assembled.module
        base = unwrapped(module)
        self.pieces = recipe.strategy.pieces(base)
        if base is not module:
            unwrap_heads(module)
        self.heads = head_names(base)
        prompts = any(piece["kind"] == "prompt" for piece in self.pieces)
        found = {"prompt": module.get_prompt(1)[0]} if prompts else {}
        found |= tensors_of(base, self.heads, self.pieces)
        self.tensors = {name: tensor.detach().clone() for name, tensor in found.items()}
        heads = tuple(f"{name}." for name in self.heads)
        self.own = {name for name in own_parameters(base) if not name.startswith(heads)}
        """The names of the base's parameters, but for the heads'."""
        self.reading = reading(base, recipe.strategy.ahead)
        if recipe.task.reads_marked:
            self.reading |= marked(recipe.task.markers(), assembled.tokenizer, base, self.reading)
            table: Any = base.get_input_embeddings().weight
            self.tensors["markers"] = table[self.reading["marked"]["ids"]].detach().clone()
        self.dtype = str(base.dtype).removeprefix("torch.")

    def write(self, folder: Path, recipe: Recipe, base: Mapping[str, Any]) -> None:
        """Write the tensors, and what `load.py` must know; `base` says where the base's are."""
        contiguous = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(contiguous, folder / TRAINED, metadata={"format": "pt"})
        said = {
            "auto_class": recipe.task.auto_class().__name__,
            "dtype": self.dtype,
            "base": dict(base),
            "trained": sha256_of(folder / TRAINED),
            "heads": self.heads,
            "pieces": self.pieces,
            **self.reading,
            "max_length": recipe.data.max_length,
            "pairs": recipe.data.text_pair is not None,
        }
        write_json(folder / "loading.json", said)


def tensors_of(
    base: PreTrainedModel, heads: list[str], pieces: list[dict[str, Any]]
) -> dict[str, Tensor]:
    """The heads', bottlenecks' and prefixes' tensors by their names in the model."""
    names = [*heads, *(piece["name"] for piece in pieces if piece["kind"] == "bottleneck")]
    names += sorted({piece["rule"] for piece in pieces if "rule" in piece})
    found = {
        f"{name}.{key}": tensor
        for name in names
        for key, tensor in base.get_submodule(name).state_dict().items()
    }
    return {**found, **states_of(base)}


def marked(
    markers: Sequence[str], tokenizer: Any, base: Any, known: Mapping[str, Any]
) -> dict[str, Any]:
    """What is told of texts with marked parts: the markers, and which of them the head reads,
    behind how many virtual tokens where it does not read the last."""
    opening = [marker for marker in markers if not marker.startswith("</")]
    said = {
        "tokens": list(markers),
        "ids": tokenizer.convert_tokens_to_ids(list(markers)),
        "opening": tokenizer.convert_tokens_to_ids(opening),
        "rows": base.get_input_embeddings().weight.shape[0],
        "ahead": known["ahead"],
    }
    return {"marked": said, "ahead": 0 if known["reads"] == "first" else known["ahead"]}


def reading(base: PreTrainedModel, ahead: int) -> dict[str, Any]:
    """Which token the head reads, behind how many virtual ones, and out of which module."""
    known = ARCHITECTURES.get(base.config.model_type)
    prefix = base.base_model_prefix if hasattr(base, base.base_model_prefix) else ""
    inner = known.encoder if known is not None else ""
    return {
        "reads": known.reads if known is not None else None,
        "ahead": ahead,
        "encoder": ".".join(filter(None, (prefix, inner))),
    }
