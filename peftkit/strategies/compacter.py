"""Compacter: bottlenecks whose weights are sums of Kronecker products with low-rank factors."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt

from peftkit.errors import Fault, RecipeError, nearest_divisors
from peftkit.models.architectures import base_of, layout_of
from peftkit.models.bottleneck import (
    Activation,
    attach_bottlenecks,
    device_and_dtype,
    export_bottlenecks,
    keep,
)
from peftkit.strategies.base import ExportedModule, Strategy, bottleneck_module, train_head

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.models.kronecker import Rule
    from peftkit.tasks.base import Task


class Compacter(Strategy):
    """x + up(f(down(x))) with Kronecker layers, whose rule all blocks share (Mahabadi et al. 2021).

    `up` starts at 0, so the model starts as it was.
    """

    kind: Literal["compacter"] = "compacter"
    variant: Literal["houlsby", "pfeiffer"] = "houlsby"
    """houlsby: after attention and feed-forward; pfeiffer: feed-forward only (Compacter++)."""
    n: PositiveInt = 4
    """Number of Kronecker products in a sum; must divide the hidden size."""
    rank: PositiveInt = 1
    """Rank of the second factor of each product."""
    reduction: PositiveInt = 32
    """Hidden size divided by the bottleneck's size, which is rounded up to a multiple of n."""
    activation: Activation = "gelu"
    """The activation between the two layers."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"compacter++": {"variant": "pfeiffer"}}
    default_lr: ClassVar[float] = 1e-2
    source: ClassVar[str] = "arXiv:2106.04647"
    mergeable: ClassVar[bool] = False

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The frozen model with Kronecker bottlenecks in its blocks, and a trainable head."""
        from peftkit.models.kronecker import Rule

        size = model.config.hidden_size
        if size % self.n:
            what = f"{self.n} does not divide the hidden size {size} - the nearest that do are "
            fault = Fault("strategy.n", what + nearest_divisors(size, self.n))
            raise RecipeError("the strategy does not fit the model:", [fault])
        model.requires_grad_(False)
        _, block, _ = layout_of(model, "strategy=compacter")[0]
        rule = Rule(self.n, **device_and_dtype(block, model))

        def make(layer: "nn.Module") -> "nn.Module":
            return self._bottleneck(rule, layer, model)

        attach_bottlenecks(model, "strategy=compacter", self.variant, make)
        # inside the base model: next to it are only heads
        keep(base_of(model), "compacter_rule", rule)
        train_head(model, task)
        return model

    def _bottleneck(
        self, rule: "Rule", layer: "nn.Module", model: "PreTrainedModel"
    ) -> "nn.Module":
        """A new bottleneck for the hidden states that `layer` gives."""
        from torch import nn
        from transformers.activations import ACT2FN

        from peftkit.models.kronecker import KroneckerLinear

        size, placed = model.config.hidden_size, device_and_dtype(layer, model)
        narrow = self.n * math.ceil(max(1, size // self.reduction) / self.n)
        down = KroneckerLinear(rule, size, narrow, self.rank, zero=False, **placed)
        up = KroneckerLinear(rule, narrow, size, self.rank, zero=True, **placed)
        return nn.Sequential(down, ACT2FN[self.activation], up)

    def exported_modules(self, model: "nn.Module") -> list[ExportedModule]:
        """The bottlenecks, each with the rule that they share."""
        found = export_bottlenecks(model, "strategy=compacter", self.variant, self.activation)
        rule = next(n for n, _ in model.named_modules() if n.endswith("compacter_rule"))
        return [bottleneck_module(model, {**settings, "rule": rule}) for settings in found]
