"""Bottlenecks: small networks inside a model's frozen blocks, attached by hooks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from peftkit.errors import Fault, RecipeError
from peftkit.models.architectures import layout_of
from peftkit.models.parameters import ATTACHED

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Activation = Literal[
    "relu", "gelu", "gelu_new", "silu", "tanh", "sigmoid", "leaky_relu", "mish", "quick_gelu"
]
"""Activation functions of a bottleneck, by their names in transformers."""


class Place(NamedTuple):
    """The place of a bottleneck; names of layers are relative to the block."""

    block: str
    name: str
    """Its name in the block."""
    behind: str
    """The layer to whose output its own is added."""
    beside: str | None
    """The layer whose input it receives; None: it receives the output that it is added to."""


def places_of(model: "nn.Module", wanted_by: str, variant: str, drop: int = 0) -> list[Place]:
    """The places of a variant's bottlenecks, in every block of `model` but the first `drop`.

    houlsby: after attention and feed-forward; pfeiffer: after feed-forward; parallel: parallel to
    it. Raises `RecipeError` if no block is left.
    """
    blocks = layout_of(model, wanted_by)
    if drop >= len(blocks):
        what = f"the model has {len(blocks)} blocks (got {drop}) - use at most {len(blocks) - 1}"
        raise RecipeError("the strategy does not fit the model:", [Fault("strategy.drop", what)])
    found = []
    for block, _, entry in blocks[drop:]:
        behind = entry.feed_forward_output
        if variant == "parallel":
            found.append(Place(block, "adapter_parallel", behind, entry.feed_forward_input))
            continue
        found.append(Place(block, "adapter_feed_forward", behind, None))
        if variant == "houlsby":
            found.append(Place(block, "adapter_attention", entry.attention_output, None))
    return found


def attach_bottlenecks(
    model: "PreTrainedModel",
    wanted_by: str,
    variant: str,
    make: Callable[["nn.Module"], "nn.Module"],
    scale: float = 1.0,
    drop: int = 0,
) -> None:
    """Attach the module that `make` returns for a layer at every place of the variant.

    A block that the model runs several times has one. Raises `RecipeError` if no block is left.
    """
    for place in places_of(model, wanted_by, variant, drop):
        block = model.get_submodule(place.block)
        behind = block.get_submodule(place.behind)
        if place.beside is None:
            attach_behind(behind, keep(block, place.name, make(behind)), scale)
            continue
        before = block.get_submodule(place.beside)
        attach_beside(before, behind, keep(block, place.name, make(before)), scale)


def export_bottlenecks(
    model: "nn.Module",
    wanted_by: str,
    variant: str,
    activation: str,
    scale: float = 1.0,
    drop: int = 0,
) -> list[dict[str, Any]]:
    """Each bottleneck as the settings of `peftkit.models.exported.bottleneck.attach`."""
    return [
        {
            "name": f"{place.block}.{place.name}",
            "output_of": f"{place.block}.{place.behind}",
            "input_of": f"{place.block}.{place.beside}" if place.beside is not None else None,
            "activation": activation,
            "scale": scale,
        }
        for place in places_of(model, wanted_by, variant, drop)
    ]


def keep(owner: "nn.Module", name: str, added: "nn.Module") -> "nn.Module":
    """Register `added` in `owner`, so that it is trained and saved with the model; returns it."""
    setattr(added, ATTACHED, True)
    owner.add_module(name, added)
    return added


def attach_behind(layer: "nn.Module", bottleneck: "nn.Module", scale: float) -> None:
    """Add the bottleneck's output, computed from the output of `layer`, to that output."""

    def add(_: "nn.Module", __: Any, output: "Tensor") -> "Tensor":
        added: Tensor = bottleneck(output)
        return output + scale * added

    layer.register_forward_hook(add)


def attach_beside(
    before: "nn.Module", behind: "nn.Module", bottleneck: "nn.Module", scale: float
) -> None:
    """Add the bottleneck's output, computed from the input of `before`, to the output of
    `behind`."""
    entering: list[Tensor] = []

    def take(_: "nn.Module", inputs: tuple["Tensor", ...]) -> None:
        entering[:] = [inputs[0]]

    def add(_: "nn.Module", __: Any, output: "Tensor") -> "Tensor":
        added: Tensor = bottleneck(entering.pop())
        return output + scale * added

    before.register_forward_pre_hook(take)
    behind.register_forward_hook(add)


def device_and_dtype(layer: "nn.Module", model: "PreTrainedModel") -> dict[str, Any]:
    """Device and dtype of new weights for `layer`; a quantized layer has no floating dtype of its
    own."""
    return {"device": next(layer.parameters()).device, "dtype": model.dtype}
