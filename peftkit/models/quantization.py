"""Quantization of the base's frozen weights, and workarounds for bitsandbytes."""

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.registry import Component

if TYPE_CHECKING:
    import torch
    from torch import nn


class Quantization(Component):
    """How the base's weights are stored while an adapter is trained."""

    family = "quantization"
    package = "peftkit.models.quantization"

    bits: ClassVar[int | None] = None
    """Bits per weight, or None for the recipe's own precision."""

    @property
    def held(self) -> str | None:
        """The name of a quantized base in messages ('4bit'), None if it is not quantized."""
        return self.kind if self.bits else None

    def loading(self, compute: "torch.dtype", unquantized: list[str]) -> dict[str, Any]:
        """Arguments for `from_pretrained`; the modules named in `unquantized` stay in the dtype
        `compute`."""
        return {}


class Unquantized(Quantization):
    """The base is stored in the recipe's precision."""

    kind: Literal["none"] = "none"


class EightBit(Quantization):
    """LLM.int8(): vector-wise 8-bit weights with outliers in 16 bits (Dettmers 2022,
    arXiv:2208.07339)."""

    kind: Literal["8bit"] = "8bit"
    threshold: float = 6.0
    """Activations above it are computed in 16 bits."""

    bits: ClassVar[int | None] = 8

    def loading(self, compute: "torch.dtype", unquantized: list[str]) -> dict[str, Any]:
        """The 8-bit configuration of bitsandbytes."""
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=self.threshold, llm_int8_skip_modules=unquantized
        )
        return {"quantization_config": config, **placement()}


class FourBit(Quantization):
    """QLoRA's 4 bits: NF4 with double quantization (Dettmers et al. 2023, arXiv:2305.14314)."""

    kind: Literal["4bit"] = "4bit"
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values a weight can take."""
    double_quant: bool = True
    """Whether the scales are quantized too (0.37 bits a weight less)."""
    quant_storage: Literal["uint8", "compute"] = "uint8"
    """How the packed bits are stored; FSDP can shard only `compute`, the computing type."""

    bits: ClassVar[int | None] = 4

    def loading(self, compute: "torch.dtype", unquantized: list[str]) -> dict[str, Any]:
        """The 4-bit configuration of bitsandbytes; `compute` is the dtype of matrix products."""
        import torch
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_storage=compute if self.quant_storage == "compute" else torch.uint8,
            llm_int8_skip_modules=unquantized,
        )
        return {"quantization_config": config, **placement()}


def placement() -> dict[str, Any]:
    """The device of each rank: bitsandbytes quantizes when loading, and DDP needs a full copy per
    rank."""
    import os

    import torch

    if not torch.cuda.is_available():
        return {"device_map": {"": "cpu"}}
    return {"device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}


def guard(model: "nn.Module") -> None:
    """Protect quantized weights from being changed.

    bitsandbytes 0.50.2 re-packs 4-bit weights in place at the first evaluation on a CPU with
    AVX512-BF16: afterwards gradients are lost and `dequantize_4bit` returns noise. transformers
    5.23 lets its Trainer train a quantized model with PEFT's adapters only; peftkit's own, and
    linear probes, leave its weights unchanged as well.
    """
    model.is_quantized = False  # type: ignore[assignment]
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if type(module).__name__ == "Linear8bitLt":
            module.register_forward_pre_hook(keep_scales)
            # it warns of float16 at every call; the record has a note
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_scales(layer: Any, _: Any) -> None:
    """Restore the scales of an 8-bit weight.

    To read one on a CPU (as DoRA does for its norm), peft 0.21 moves it to the CPU again;
    bitsandbytes 0.50.2 then treats it as new, and its missing scales replace the layer's.
    """
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB


def dequantized(module: "nn.Module") -> "torch.Tensor":
    """The dequantized weight of a quantized linear layer, in fp32, (out, in)."""
    import bitsandbytes.functional as functional

    layer: Any = module
    weight = layer.weight
    if type(module).__name__ == "Linear4bit":
        packed = functional.dequantize_4bit(weight.data, weight.quant_state)
        return packed.float()
    # the first forward pass moves the scales from the weight to the layer
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB
    dense: torch.Tensor = weight.data.float() * (scales.float() / 127).unsqueeze(1)
    return dense
