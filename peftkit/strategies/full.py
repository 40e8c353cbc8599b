"""Full fine-tuning: every weight moves."""

from typing import TYPE_CHECKING, ClassVar, Literal

from peftkit.strategies import Strategy

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks import Task


class Full(Strategy):
    """Every weight of the model is trained (Devlin et al. 2019, arXiv:1810.04805)."""

    kind: Literal["full"] = "full"

    default_lr: ClassVar[float] = 5e-5
    source: ClassVar[str] = "arXiv:1810.04805"
    trains_base: ClassVar[bool] = True
    loads_with: ClassVar[Literal["peftkit", "peft", "transformers"]] = "transformers"
    # the name that makes the artefact an ordinary checkpoint
    trained_file: ClassVar[str] = "model.safetensors"

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The model with every weight trainable."""
        return model.requires_grad_(True)
