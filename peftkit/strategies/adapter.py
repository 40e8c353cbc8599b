"""Bottleneck adapters: small two-layer networks inside each block (Houlsby, Pfeiffer, parallel)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from peftkit.architectures import architecture_of, blocks_of
from peftkit.strategies import Strategy, train_head

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from peftkit.tasks import Task


class Adapter(Strategy):
    """x + up(f(down(x))) inside frozen blocks; `up` starts at 0, so the model starts as it was."""

    kind: Literal["adapter"] = "adapter"
    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """houlsby: behind attention and feed-forward (arXiv:1902.00751); pfeiffer: behind feed-forward
    only (arXiv:2005.00247); parallel: beside feed-forward (arXiv:2110.04366)."""
    reduction: PositiveInt = 16
    """Hidden size divided by the bottleneck's size."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """What stands between the two layers."""
    scale: PositiveFloat = 1.0
    """Factor on what the adapter adds."""

    default_lr: ClassVar[float] = 1e-3
    source: ClassVar[str] = "arXiv:1902.00751"
    foldable: ClassVar[bool] = False

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The frozen model with adapters in every block, and a trainable head."""
        model.requires_grad_(False)
        architecture = architecture_of(model, "strategy=adapter")
        for _, block in blocks_of(model):
            behind = block.get_submodule(architecture.feed_forward_output)
            if self.variant == "parallel":
                before = block.get_submodule(architecture.feed_forward_input)
                self._attach_beside(block, before, behind, model)
                continue
            self._attach_behind(block, "adapter_feed_forward", behind, model)
            if self.variant == "houlsby":
                attention = block.get_submodule(architecture.attention_output)
                self._attach_behind(block, "adapter_attention", attention, model)
        train_head(model, task)
        return model

    def _attach_behind(
        self, block: "nn.Module", name: str, layer: "nn.Module", model: "PreTrainedModel"
    ) -> None:
        bottleneck = self._bottleneck(block, name, layer, model)

        def add(_: "nn.Module", __: Any, output: "Tensor") -> "Tensor":
            return output + self.scale * bottleneck(output)

        layer.register_forward_hook(add)

    def _attach_beside(
        self, block: "nn.Module", before: "nn.Module", behind: "nn.Module", model: "PreTrainedModel"
    ) -> None:
        bottleneck = self._bottleneck(block, "adapter_parallel", before, model)
        entering: list[Tensor] = []

        def keep(_: "nn.Module", inputs: tuple["Tensor", ...]) -> None:
            entering[:] = [inputs[0]]

        def add(_: "nn.Module", __: Any, output: "Tensor") -> "Tensor":
            return output + self.scale * bottleneck(entering.pop())

        before.register_forward_pre_hook(keep)
        behind.register_forward_hook(add)

    def _bottleneck(
        self, block: "nn.Module", name: str, layer: "nn.Module", model: "PreTrainedModel"
    ) -> Callable[["Tensor"], "Tensor"]:
        """A new bottleneck, registered in `block` so that it is trained and saved with it."""
        from torch import nn
        from transformers.activations import ACT2FN

        size = model.config.hidden_size
        # a quantised layer's weight has no floating type of its own: the model's is meant
        placed: dict[str, Any] = {"device": next(layer.parameters()).device, "dtype": model.dtype}
        narrow = max(1, size // self.reduction)
        down, up = nn.Linear(size, narrow, **placed), nn.Linear(narrow, size, **placed)
        nn.init.normal_(down.weight, std=0.02)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        bottleneck = nn.Sequential(down, ACT2FN[self.activation], up)
        block.add_module(name, bottleneck)
        return bottleneck
