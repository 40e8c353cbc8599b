"""BitFit: the biases are trained, and nothing else but the head."""

from typing import TYPE_CHECKING, ClassVar, Literal

from peftkit.errors import Fault, RecipeError
from peftkit.models.architectures import head_names, matching
from peftkit.models.parameters import base_parameters
from peftkit.strategies.base import Strategy, train_head

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class BitFit(Strategy):
    """All biases, or those of some layers, are trained (Ben Zaken et al. 2022); it needs biases.

    They stay whole in a quantized model, and bitsandbytes gives them exact gradients.
    """

    kind: Literal["bitfit"] = "bitfit"
    targets: list[str] | Literal["auto"] = "auto"
    """Layers and norms whose biases train, by the ends of their names; auto: all. The paper's
    smaller choice is [query, intermediate.dense]."""

    default_lr: ClassVar[float] = 4e-3
    source: ClassVar[str] = "arXiv:2106.10199"

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The frozen model with its biases and its head trainable."""
        heads = tuple(f"{head}." for head in head_names(model))
        biases = {
            name.removesuffix(".bias"): parameter
            for name, parameter in base_parameters(model).items()
            if name.endswith(".bias") and not name.startswith(heads)
        }
        if not biases:
            what = (
                f"a model of the architecture {model.config.model_type!r} has no biases - use "
                "strategy=layernorm, strategy=lora or strategy=adapter"
            )
            raise RecipeError("the strategy does not fit the model:", [Fault("strategy", what)])
        names = list(biases)
        if not isinstance(self.targets, str):
            names = matching(self.targets, names, "strategy.targets")
        model.requires_grad_(False)
        for name in names:
            biases[name].requires_grad_(True)
        train_head(model, task)
        return model
