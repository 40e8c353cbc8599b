"""Bottlenecks: where small networks stand inside a model's frozen blocks, and their hooks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from peftkit.architectures import layout_of
from peftkit.errors import Fault, RecipeError
from peftkit.parameters import ATTACHED

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Activation = Literal[
    "relu", "gelu", "gelu_new", "silu", "tanh", "sigmoid", "leaky_relu", "mish", "quick_gelu"
]
"""Functions between a bottleneck's two layers, by transformers' names."""


def attach_bottlenecks(
    model: "PreTrainedModel",
    wanted_by: str,
    variant: str,
    make: Callable[["nn.Module"], "nn.Module"],
    scale: float = 1.0,
    drop: int = 0,
) -> None:
    """Put what `make` gives for a layer into every block of `model` but the first `drop`.

    houlsby: behind attention and feed-forward, pfeiffer: behind feed-forward, parallel: beside it.
    A block that the model runs several times has one. Raises `RecipeError` where no block is left.
    """
    blocks = layout_of(model, wanted_by)
    if drop >= len(blocks):
        what = f"the model has {len(blocks)} blocks (got {drop}) - use at most {len(blocks) - 1}"
        raise RecipeError("the strategy does not fit the model:", [Fault("strategy.drop", what)])
    for _, block, entry in blocks[drop:]:
        behind = block.get_submodule(entry.feed_forward_output)
        if variant == "parallel":
            before = block.get_submodule(entry.feed_forward_input)
            attach_beside(before, behind, keep(block, "adapter_parallel", make(before)), scale)
            continue
        attach_behind(behind, keep(block, "adapter_feed_forward", make(behind)), scale)
        if variant == "houlsby":
            attention = block.get_submodule(entry.attention_output)
            attach_behind(attention, keep(block, "adapter_attention", make(attention)), scale)


def keep(owner: "nn.Module", name: str, added: "nn.Module") -> "nn.Module":
    """`added`, registered in `owner` so that it is trained and saved with it."""
    setattr(added, ATTACHED, True)
    owner.add_module(name, added)
    return added


def attach_behind(layer: "nn.Module", bottleneck: "nn.Module", scale: float) -> None:
    """Add to `layer`'s output what the bottleneck makes of it."""

    def add(_: "nn.Module", __: Any, output: "Tensor") -> "Tensor":
        added: Tensor = bottleneck(output)
        return output + scale * added

    layer.register_forward_hook(add)


def attach_beside(
    before: "nn.Module", behind: "nn.Module", bottleneck: "nn.Module", scale: float
) -> None:
    """Add to the output of `behind` what the bottleneck makes of the input of `before`."""
    entering: list[Tensor] = []

    def take(_: "nn.Module", inputs: tuple["Tensor", ...]) -> None:
        entering[:] = [inputs[0]]

    def add(_: "nn.Module", __: Any, output: "Tensor") -> "Tensor":
        added: Tensor = bottleneck(entering.pop())
        return output + scale * added

    before.register_forward_pre_hook(take)
    behind.register_forward_hook(add)


def placed_like(layer: "nn.Module", model: "PreTrainedModel") -> dict[str, Any]:
    """Device and type for new weights beside `layer`: a quantised one has no floating type."""
    return {"device": next(layer.parameters()).device, "dtype": model.dtype}
