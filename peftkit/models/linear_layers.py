"""Shapes and weights of linear layers, and checks that a strategy fits them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import Fault, RecipeError, RunError

if TYPE_CHECKING:
    from torch import Tensor, nn


def linear_shape(layer: "nn.Module") -> tuple[int, int]:
    """The shape (out, in) of a linear layer, whichever way its weight is stored."""
    found: Any = layer
    if type(layer).__name__ == "Conv1D":
        return found.nf, found.nx
    return found.out_features, found.in_features


def keeps_weights_transposed(model: "nn.Module", names: Sequence[str]) -> bool:
    """Whether any of the layers is a Conv1D, as in GPT-2, with a weight of shape (in, out)."""
    return any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in names)


def check_no_conv1d(model: "nn.Module", names: Sequence[str], wanted_by: str) -> None:
    """Raise `RecipeError` if one of the layers is a Conv1D, which PEFT 0.21 does not support for
    this method."""
    layers: list[Any] = [model.get_submodule(name) for name in names]
    classes = [getattr(layer, "source_cls", type(layer)) for layer in layers]  # before quantizing
    if any(each.__name__ == "Conv1D" for each in classes):
        what = (
            f"PEFT's {wanted_by} does not support Conv1D layers, which this model has - use "
            "strategy=lora or another model"
        )
        raise RecipeError("the strategy does not fit the model:", [Fault("strategy", what)])


def check_rank(
    model: "nn.Module", names: Sequence[str], rank: int, setting: str = "strategy.r"
) -> None:
    """Raise `RecipeError` if `rank` is larger than that of a layer's weight can be."""
    if not names:
        return
    narrowest = min(names, key=lambda name: min(linear_shape(model.get_submodule(name))))
    out, into = linear_shape(model.get_submodule(narrowest))
    if rank > min(out, into):
        what = (
            f"the weight of {narrowest} is {out} x {into}: a difference of rank {rank} would be "
            f"larger than the weight itself - use at most {setting}={min(out, into)}"
        )
        raise RecipeError("the strategy does not fit the model:", [Fault(setting, what)])


def stored_weight(folder: Path, name: str) -> "Tensor":
    """The weight of the layer `name`, as stored in the model's safetensors files in `folder`.

    The prefix of the base model may be missing or differ there. Raises `RunError` if not exactly
    one tensor matches.
    """
    from safetensors import safe_open

    tail = f"{name}.weight".partition(".")[2]
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            found |= {n: path for n in stored.keys() if n == tail or n.endswith(f".{tail}")}  # noqa: SIM118
    if len(found) != 1:
        raise RunError(
            f"{folder}: {len(found)} tensors in its safetensors files match {name}.weight "
            f"({', '.join(found) or 'none'}), where exactly one is needed "
            "- use strategy=lora"
        )
    ((tensor, path),) = found.items()
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor(tensor)  # type: ignore[no-any-return]


MAX_DISTANCE = 0.5
"""Largest relative distance of a weight from its quantized form; 4 bits lose about 0.1."""


def quantization_error(layer: "nn.Module", name: str, folder: Path) -> "Tensor":
    """The quantization error of the weight of `layer`, named `name` in the model of `folder`: fp32,
    (out, in).

    Raises `RunError` if the files have another weight.
    """
    from transformers.pytorch_utils import Conv1D

    from peftkit.models.quantization import dequantized

    quantized, stored = dequantized(layer), stored_weight(folder, name).float()
    if issubclass(getattr(layer, "source_cls", type(layer)), Conv1D):
        stored = stored.T
    is_same_shape = quantized.shape == stored.shape
    stored = stored.to(quantized.device)
    if not is_same_shape or (stored - quantized).norm() > MAX_DISTANCE * stored.norm():
        raise RunError(
            f"{folder}: the weight of {name} is not the one that was quantized - use strategy=lora"
        )
    return stored - quantized


def check_block_size(model: "nn.Module", names: Sequence[str], size: int, times: int = 1) -> None:
    """Raise `RecipeError` if a layer's inputs are not divisible into blocks of `size` times
    `times`."""
    for name in names:
        _, into = linear_shape(model.get_submodule(name))
        if into % (size * times):
            most = into // times
            fits = max((n for n in range(1, min(size, most) + 1) if most % n == 0), default=1)
            what = (
                f"{name} has {into} inputs, not divisible into blocks of {size * times} - "
                f"use strategy.block_size={fits}"
            )
            fault = Fault("strategy.block_size", what)
            raise RecipeError("the strategy does not fit the model:", [fault])
