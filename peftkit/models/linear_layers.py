"""Linear layers: their shapes, and what an adapter of a given rank or kind asks of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import Fault, RecipeError, RunError

if TYPE_CHECKING:
    from torch import Tensor, nn


def shape_of(layer: "nn.Module") -> tuple[int, int]:
    """What a linear layer gives and takes, whichever way its weight lies: (out, in)."""
    found: Any = layer
    if type(layer).__name__ == "Conv1D":
        return found.nf, found.nx
    return found.out_features, found.in_features


def keeps_weights_transposed(model: "nn.Module", names: Sequence[str]) -> bool:
    """Whether any of the layers is a Conv1D, as GPT-2's are: its weight lies as (in, out)."""
    return any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in names)


def refuse_transposed(model: "nn.Module", names: Sequence[str], wanted_by: str) -> None:
    """Raise `RecipeError` where PEFT 0.21 cannot attach a method to one of the layers."""
    layers: list[Any] = [model.get_submodule(name) for name in names]
    classes = [getattr(layer, "source_cls", type(layer)) for layer in layers]  # before quantizing
    if any(each.__name__ == "Conv1D" for each in classes):
        what = (
            f"PEFT's {wanted_by} knows no Conv1D layers, which this model is made of - use "
            "strategy=lora or another model"
        )
        raise RecipeError("the strategy does not fit the model:", [Fault("strategy", what)])


def refuse_larger_rank(
    model: "nn.Module", names: Sequence[str], rank: int, setting: str = "strategy.r"
) -> None:
    """Raise `RecipeError` where `rank` is more than a layer's own weight can have."""
    if not names:
        return
    narrowest = min(names, key=lambda name: min(shape_of(model.get_submodule(name))))
    out, into = shape_of(model.get_submodule(narrowest))
    if rank > min(out, into):
        what = (
            f"the weight of {narrowest} is {out} x {into}: a difference of rank {rank} would be "
            f"more than the weight itself - use at most {setting}={min(out, into)}"
        )
        raise RecipeError("the strategy does not fit the model:", [Fault(setting, what)])


def stored_weight(folder: Path, name: str) -> "Tensor":
    """The weight of the layer called `name` as the model's own files in `folder` hold it.

    They may name it without, or with another, name of the base model in front. Raises `RunError`
    where no tensor there, or more than one, is meant.
    """
    from safetensors import safe_open

    tail = f"{name}.weight".partition(".")[2]
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            found |= {n: path for n in stored.keys() if n == tail or n.endswith(f".{tail}")}  # noqa: SIM118
    if len(found) != 1:
        raise RunError(
            f"{folder}: of the tensors in its safetensors files, {len(found)} are called like "
            f"{name}.weight ({', '.join(found) or 'none'}), and the one that was loaded is needed "
            "- use strategy=lora"
        )
    ((tensor, path),) = found.items()
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor(tensor)  # type: ignore[no-any-return]


FARTHEST = 0.5
"""Of a weight from what quantizing made of it, as a share of its own size; 4 bits lose a tenth."""


def lost_of(layer: "nn.Module", name: str, folder: Path) -> "Tensor":
    """What quantizing lost of the weight of `layer`, called `name` in the model of `folder`.

    In fp32, shape (out, in). Raises `RunError` where the files there hold another weight.
    """
    from transformers.pytorch_utils import Conv1D

    from peftkit.models.quantization import dequantized

    held, whole = dequantized(layer), stored_weight(folder, name).float()
    if issubclass(getattr(layer, "source_cls", type(layer)), Conv1D):
        whole = whole.T
    same = held.shape == whole.shape
    whole = whole.to(held.device)
    if not same or (whole - held).norm() > FARTHEST * whole.norm():
        raise RunError(
            f"{folder}: the weight of {name} there is not the one that was quantized - use "
            "strategy=lora"
        )
    return whole - held


def refuse_blocks(model: "nn.Module", names: Sequence[str], size: int, times: int = 1) -> None:
    """Raise `RecipeError` where a layer's inputs do not part into blocks of `size` (`times` so)."""
    for name in names:
        _, into = shape_of(model.get_submodule(name))
        if into % (size * times):
            most = into // times
            fits = max((n for n in range(1, min(size, most) + 1) if most % n == 0), default=1)
            what = (
                f"{name} takes {into} inputs, which do not part into blocks of {size * times} - "
                f"use strategy.block_size={fits}"
            )
            fault = Fault("strategy.block_size", what)
            raise RecipeError("the strategy does not fit the model:", [fault])
