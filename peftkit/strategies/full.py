"""Full fine-tuning: every weight moves."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from peftkit.strategies.base import LRMultiplier, Strategy, slower_below, train_all

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Full(Strategy):
    """Every weight of the model is trained (Devlin et al. 2019, arXiv:1810.04805)."""

    kind: Literal["full"] = "full"
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of a block over that of the block above it (ULMFiT, arXiv:1801.06146)."""

    default_lr: ClassVar[float] = 5e-5
    source: ClassVar[str] = "arXiv:1810.04805"
    trains_base: ClassVar[bool] = True
    loads_with: ClassVar[Literal["peftkit", "peft", "transformers"]] = "transformers"
    # the name that makes the artifact an ordinary checkpoint
    trained_file: ClassVar[str] = "model.safetensors"

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The model with every weight trainable."""
        return train_all(model)

    def lr_multipliers(self, model: "nn.Module") -> dict[str, LRMultiplier]:
        """Slower the further from the head."""
        return slower_below(model, self.layer_decay)
