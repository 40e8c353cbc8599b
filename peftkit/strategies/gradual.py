"""Gradual unfreezing: every weight is trained in the end, block after block from the head down."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from peftkit.models.architectures import parameter_depths
from peftkit.strategies.base import LRMultiplier, Strategy, train_all

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Gradual(Strategy):
    """The head moves at once, then one block more at a time, the embeddings last (ULMFiT).

    Gradients are computed for all from the start: it costs what full fine-tuning does.
    """

    kind: Literal["gradual"] = "gradual"
    until: float = Field(default=0.5, gt=0, le=0.9)
    """Share of the steps after which everything moves."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of a block over that of the block above it; ULMFiT's is 1 / 2.6."""

    default_lr: ClassVar[float] = 5e-5
    source: ClassVar[str] = "arXiv:1801.06146"
    trains_base: ClassVar[bool] = True
    loads_with: ClassVar[Literal["peftkit", "peft", "transformers"]] = "transformers"
    trained_file: ClassVar[str] = "model.safetensors"

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The model with every weight trainable."""
        return train_all(model)

    def lr_multipliers(self, model: "nn.Module") -> dict[str, LRMultiplier]:
        """Later, and slower, the further from the head."""
        depths = parameter_depths(model)
        deepest = max(depths.values())
        return {
            name: LRMultiplier(self.layer_decay**depth, self.until * depth / deepest)
            for name, depth in depths.items()
            if depth
        }
