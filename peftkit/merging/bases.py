"""Bases: the weights that a quantized run was trained against, made from the original ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.checkpoint.tensors import Stored
from peftkit.merging.deltas.low_rank import Fold, Rows, Shape
from peftkit.models.quantization import Quantization


@dataclass(frozen=True)
class Dequantized(Fold):
    """W as bitsandbytes holds it in 4 or 8 bits, in fp32 again."""

    quantize: Quantization
    precision: str
    """The type it was quantized from."""
    transposed: bool
    whole = True

    @property
    def parts(self) -> tuple[Stored, ...]:
        """None of the adapter's."""
        return ()

    def expects(self) -> str:
        """Any matrix."""
        return "[any, any]"

    def fits(self, shape: Shape) -> bool:
        """Whether it is a matrix."""
        return len(shape) == 2

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The weight, quantized and dequantized."""

        def again(_first: int, _last: int, rows: "Tensor") -> "Tensor":
            weight = rows.T.contiguous() if self.transposed else rows
            found = held(weight, self.quantize, self.precision)
            return found.T.contiguous() if self.transposed else found

        return again

    def is_nothing(self) -> bool:
        """It is no word of the adapter's."""
        return True


def held(weight: "Tensor", quantize: Quantization, precision: str) -> "Tensor":
    """What the quantized `weight` stands for, as `quantization.dequantized` reads it."""
    from importlib import import_module

    from peftkit.models.quantization import dequantized

    made: Any = import_module("bitsandbytes.nn")  # untyped
    settings: Any = quantize
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    wide, narrow = weight.shape
    if quantize.bits == 4:
        packed = {
            "compress_statistics": settings.double_quant,
            "quant_type": settings.quant_type,
            "quant_storage": dtype if settings.quant_storage == "compute" else torch.uint8,
        }
        layer = made.Linear4bit(narrow, wide, bias=False, **packed)
        parameter = made.Params4bit(weight.to(dtype), requires_grad=False, **packed)
    else:
        layer = made.Linear8bitLt(narrow, wide, bias=False, has_fp16_weights=False)
        parameter = made.Int8Params(weight.to(dtype), requires_grad=False, has_fp16_weights=False)
    layer.weight = parameter.to("cpu")  # quantizes on arrival
    return dequantized(layer)


def quantization_of(adapter: Adapter) -> Quantization | None:
    """How the base was held while the adapter was trained; None where it was whole."""
    said = adapter.sealed.get("quantize")
    if said is None:
        return None
    found = Quantization.parse(said, "quantize")
    return found if found.bits else None


def trained_precision(adapter: Adapter) -> str:
    """The type that the base was loaded in for training.

    Raises `RunError` where only the run knows and it is not at hand.
    """
    if adapter.run is None:
        raise RunError(
            f"{adapter.folder}: was trained on a quantized base, and which type that was made from "
            "stands in its run - name the run's folder, or say --onto original"
        )
    said = adapter.run.description().get("world", {}).get("precision")
    if said is None:
        raise RunError(f"{adapter.run.path}: does not say its precision - say --onto original")
    return str(said)


def dequantized_layers(adapter: Adapter, base: Path) -> dict[str, Fold]:
    """For each layer that was quantized in training, by the model's names, what it was then."""
    quantize = quantization_of(adapter)
    if quantize is None:
        return {}
    from peftkit.merging.trained_models import quantized_layers

    precision = trained_precision(adapter)
    return {
        f"{name}.weight": Dequantized(quantize, precision, transposed)
        for name, transposed in quantized_layers(adapter, base).items()
    }
