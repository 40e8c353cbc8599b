"""IA3: keys, values and the inputs of the last feed-forward layer are rescaled."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.deltas.base import AdapterLayer, Deltas
from peftkit.deltas.structured import Scaling
from peftkit.models.architectures import (
    feed_forward_layers,
    find_target_layers,
    key_layers,
    linear_layers,
    matching,
    model_type_of,
    value_layers,
)
from peftkit.models.layouts import ARCHITECTURES
from peftkit.models.linear_layers import keeps_weights_transposed
from peftkit.strategies.base import PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Ia3(PeftStrategy):
    """l o W x for keys and values, W (l o x) for the feed-forward part (Liu et al. 2022), by PEFT.

    If one layer computes queries too, all its outputs are rescaled.
    """

    kind: Literal["ia3"] = "ia3"
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to rescale, by the ends of their names; auto: the paper's."""

    default_lr: ClassVar[float] = 1e-2
    source: ClassVar[str] = "arXiv:2205.05638"
    peft_types: ClassVar[tuple[str, ...]] = ("IA3",)
    layer_tensors: ClassVar[tuple[str, ...]] = ("ia3_l",)

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """Scales the inputs of a feed-forward layer, or the outputs of another and their bias."""
        factors = layer.tensors.get("ia3_l")
        if factors is None or len(factors.shape) != 2:
            return {}
        scales_inputs = factors.shape[0] == 1
        weight = Scaling(factors, int(scales_inputs != layer.transposed))
        if scales_inputs or not layer.has_bias:
            return {"weight": (weight,)}
        return {"weight": (weight,), "bias": (Scaling(factors, 0),)}

    @classmethod
    def check_sum(cls, config: Mapping[str, Any]) -> str | None:
        """Scales."""
        return "IA3 multiplies the weights, which cannot be added"

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """IA3 on the targets; of those that end a feed-forward part, what enters is rescaled."""
        from peft import IA3Config

        layers, feed_forward = paper_layers(model)
        if not isinstance(self.targets, str):
            layers = find_target_layers(model, self.targets)
        return IA3Config(
            task_type=task.peft_type_of(model),
            target_modules=layers,
            feedforward_modules=[name for name in feed_forward if name in set(layers)],
            modules_to_save=saved_heads(model, task),
            fan_in_fan_out=keeps_weights_transposed(model, layers),
        )

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel` whose vectors are all ones."""
        return keep_input_dtype(super().adapt(model, task))

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """The PEFT folder on a new base."""
        return keep_input_dtype(super().load(model, folder, task))


def keep_input_dtype(model: "nn.Module") -> "nn.Module":
    """Make rescaled layers return their inputs' dtype: on a quantized layer PEFT 0.21 turns bf16
    into fp32, and attention needs one dtype."""
    for layer in model.modules():
        if hasattr(layer, "ia3_l"):
            layer.register_forward_hook(lambda _, inputs, output: output.to(inputs[0].dtype))
    return model


def paper_layers(model: "PreTrainedModel") -> tuple[list[str], list[str]]:
    """The full names of the layers that the paper rescales, and which of them end a feed-forward
    part; from PEFT's table for an architecture that peftkit does not know."""
    from peft.utils import constants

    kind, wanted_by = model_type_of(model), "strategy=ia3"
    table = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    if kind in table and kind not in ARCHITECTURES:
        ends = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]
        every = linear_layers(model)
        return matching(table[kind], every, wanted_by), matching(ends, every, wanted_by)
    feed_forward = feed_forward_layers(model, wanted_by)
    chosen = {*key_layers(model, wanted_by), *value_layers(model, wanted_by), *feed_forward}
    return [name for name in linear_layers(model) if name in chosen], feed_forward
