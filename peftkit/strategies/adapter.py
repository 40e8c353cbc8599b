"""Bottleneck adapters: small two-layer networks inside each block (Houlsby, Pfeiffer, parallel)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from peftkit.models.bottleneck import (
    Activation,
    attach_bottlenecks,
    device_and_dtype,
    export_bottlenecks,
)
from peftkit.strategies.base import ExportedModule, Strategy, bottleneck_module, train_head

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Adapter(Strategy):
    """x + up(f(down(x))) inside frozen blocks; `up` starts at 0, so the model starts as it was."""

    kind: Literal["adapter"] = "adapter"
    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """houlsby: after attention and feed-forward (arXiv:1902.00751); pfeiffer: after feed-forward
    only (arXiv:2005.00247); parallel: next to it (arXiv:2110.04366)."""
    reduction: PositiveInt = 16
    """Hidden size divided by the bottleneck's size."""
    activation: Activation = "relu"
    """The activation between the two layers."""
    scale: PositiveFloat = 1.0
    """Factor of the adapter's output."""
    drop: NonNegativeInt = 0
    """Blocks without adapters, from the embeddings up: they take no part in the backward pass
    (AdapterDrop, arXiv:2010.11918)."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"adapter_drop": {"drop": 3}}
    default_lr: ClassVar[float] = 3e-3
    source: ClassVar[str] = "arXiv:1902.00751"
    mergeable: ClassVar[bool] = False

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The frozen model with adapters in its blocks, and a trainable head."""
        model.requires_grad_(False)

        def make(layer: "nn.Module") -> "nn.Module":
            return self._bottleneck(layer, model)

        attach_bottlenecks(model, "strategy=adapter", self.variant, make, self.scale, self.drop)
        train_head(model, task)
        return model

    def _bottleneck(self, layer: "nn.Module", model: "PreTrainedModel") -> "nn.Module":
        """A new bottleneck for the hidden states that `layer` takes or gives."""
        from torch import nn
        from transformers.activations import ACT2FN

        size, placed = model.config.hidden_size, device_and_dtype(layer, model)
        narrow = max(1, size // self.reduction)
        down, up = nn.Linear(size, narrow, **placed), nn.Linear(narrow, size, **placed)
        nn.init.normal_(down.weight, std=0.02)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        return nn.Sequential(down, ACT2FN[self.activation], up)

    def exported_modules(self, model: "nn.Module") -> list[ExportedModule]:
        """The bottlenecks."""
        settings = export_bottlenecks(
            model, "strategy=adapter", self.variant, self.activation, self.scale, self.drop
        )
        return [bottleneck_module(model, each) for each in settings]
