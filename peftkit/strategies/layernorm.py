"""LN-tuning: the normalizations' weights and biases are trained, and nothing else but the head."""

from typing import TYPE_CHECKING, ClassVar, Literal

from peftkit.errors import Fault, RecipeError
from peftkit.models.architectures import matching
from peftkit.models.parameters import base_modules, is_norm
from peftkit.strategies.base import Strategy, train_head

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class LayerNorm(Strategy):
    """All normalizations, RMSNorm too, or some of them are trained (Zhao et al. 2023)."""

    kind: Literal["layernorm"] = "layernorm"
    targets: list[str] | Literal["auto"] = "auto"
    """Normalizations to train, by the ends of their names; auto: all."""
    biases: bool = True
    """Whether their biases train, where they have any."""

    default_lr: ClassVar[float] = 4e-3
    source: ClassVar[str] = "arXiv:2312.11420"

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The frozen model with its normalizations and its head trainable."""
        norms = {
            name: parameters
            for name, module in base_modules(model)
            if is_norm(module) and (parameters := dict(module.named_parameters(recurse=False)))
        }
        if not norms:
            what = (
                f"a model of the architecture {model.config.model_type!r} has no normalization "
                "with weights - use strategy=bitfit, strategy=lora or strategy=adapter"
            )
            raise RecipeError("the strategy does not fit the model:", [Fault("strategy", what)])
        names = list(norms)
        if not isinstance(self.targets, str):
            names = matching(self.targets, names, "strategy.targets")
        model.requires_grad_(False)
        for name in names:
            for key, parameter in norms[name].items():
                parameter.requires_grad_(self.biases or key != "bias")
        train_head(model, task)
        return model
