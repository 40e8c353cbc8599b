"""The weights that a quantized run was trained against, computed again from the original base."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftkit.deltas.base import RowUpdate, Shape, WeightDelta
from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.models.quantization import Quantization
from peftkit.storage.safetensors_files import StoredTensor


@dataclass(frozen=True)
class DequantizedWeight(WeightDelta):
    """W quantized to 4 or 8 bits by bitsandbytes, and dequantized to fp32."""

    quantize: Quantization
    precision: str
    """The type that it was quantized from: 'bf16' or 'fp32'."""
    transposed: bool
    needs_all_rows = True

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """None of the adapter's."""
        return ()

    @property
    def expected_shape(self) -> str:
        """Any matrix."""
        return "[any, any]"

    def fits(self, shape: Shape) -> bool:
        """Whether it is a matrix."""
        return len(shape) == 2

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Quantizes and dequantizes the weight."""

        def requantize(_first: int, _end: int, rows: "Tensor") -> "Tensor":
            weight = rows.T.contiguous() if self.transposed else rows
            dequantized = quantize_and_dequantize(weight, self.quantize, self.precision)
            return dequantized.T.contiguous() if self.transposed else dequantized

        return requantize

    def is_zero(self) -> bool:
        """It is not a change of the adapter's."""
        return True


def quantize_and_dequantize(weight: "Tensor", quantize: Quantization, precision: str) -> "Tensor":
    """The values (out, in) that a quantized `weight` represents, in fp32."""
    from peftkit.models.quantization import dequantized

    bitsandbytes: Any = import_module("bitsandbytes.nn")  # untyped
    settings: Any = quantize
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    out_features, in_features = weight.shape
    if quantize.bits == 4:
        packed = {
            "compress_statistics": settings.double_quant,
            "quant_type": settings.quant_type,
            "quant_storage": dtype if settings.quant_storage == "compute" else torch.uint8,
        }
        layer = bitsandbytes.Linear4bit(in_features, out_features, bias=False, **packed)
        parameter = bitsandbytes.Params4bit(weight.to(dtype), requires_grad=False, **packed)
    else:
        kept = {"has_fp16_weights": False}
        layer = bitsandbytes.Linear8bitLt(in_features, out_features, bias=False, **kept)
        parameter = bitsandbytes.Int8Params(weight.to(dtype), requires_grad=False, **kept)
    layer.weight = parameter.to("cpu")  # moving it quantizes it
    return dequantized(layer)


def quantization_of(adapter: Adapter) -> Quantization | None:
    """How the base was quantized in training; None if it was not."""
    settings = adapter.manifest.get("quantize")
    if settings is None:
        return None
    quantize = Quantization.parse(settings, "quantize")
    return quantize if quantize.bits else None


def training_precision(adapter: Adapter) -> str:
    """The type that the base was loaded in for training: 'bf16' or 'fp32'.

    Raises `RunError` if it is not recorded, or only in a run that is not available.
    """
    if adapter.run is None:
        raise RunError(
            f"{adapter.folder}: was trained on a quantized base, and only its run records what "
            "that was quantized from - name the run's directory, or use --onto original"
        )
    precision = adapter.run.description().get("world", {}).get("precision")
    if precision is None:
        raise RunError(f"{adapter.run.path}: does not record its precision - use --onto original")
    return str(precision)


def dequantized_weights(adapter: Adapter, base: Path) -> dict[str, WeightDelta]:
    """The weights that were quantized in training, by the model's names; empty if none were."""
    quantize = quantization_of(adapter)
    if quantize is None:
        return {}
    from peftkit.merging.training_models import quantized_layers

    precision = training_precision(adapter)
    return {
        f"{name}.weight": DequantizedWeight(quantize, precision, transposed)
        for name, transposed in quantized_layers(adapter, base).items()
    }
