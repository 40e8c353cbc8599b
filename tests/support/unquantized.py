"""A quantized model made an ordinary, dequantized one."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.models.quantization import dequantized


def unquantize(model: nn.Module) -> None:
    """Replace every quantized linear layer by an ordinary one in fp32, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("Linear4bit", "Linear8bitLt"):
                setattr(parent, name, ordinary(child))
    for name in (
        "hf_quantizer",
        "quantization_method",
        "is_quantized",
        "is_loaded_in_4bit",
        "is_loaded_in_8bit",
    ):
        vars(model).pop(name, None)
    config: Any = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config


def ordinary(layer: nn.Module) -> nn.Module:
    """The linear layer that was quantized, frozen, in fp32."""
    weight = dequantized(layer)
    num_outputs, num_inputs = weight.shape
    made: Any
    if issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D):  # GPT-2's: (in, out)
        made, weight = Conv1D(num_outputs, num_inputs), weight.T.contiguous()
    else:
        made = nn.Linear(num_inputs, num_outputs, bias=layer.bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        bias: Any = layer.bias
        made.bias = nn.Parameter(bias.data.float(), requires_grad=False)
    return made.train(layer.training)  # type: ignore[no-any-return]
