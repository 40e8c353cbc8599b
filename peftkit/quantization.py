"""Quantisation: how the resting weights of the base are held, and the guards bitsandbytes needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.registry import Component

if TYPE_CHECKING:
    import torch
    from torch import nn


class Quantization(Component):
    """How the base's weights rest in memory while an adapter trains."""

    family = "quantization"
    package = "peftkit.quantization"

    bits: ClassVar[int | None] = None
    """Bits a weight, or None for the recipe's own precision."""

    @property
    def held(self) -> str | None:
        """What a quantised base is called in messages ('4bit'), None for one that is not."""
        return self.kind if self.bits else None

    def loading(self, compute: "torch.dtype", whole: list[str]) -> dict[str, Any]:
        """Arguments for `from_pretrained`; the modules named in `whole` stay in `compute`."""
        return {}


class Unquantized(Quantization):
    """The base rests in the recipe's precision."""

    kind: Literal["none"] = "none"


class EightBit(Quantization):
    """LLM.int8(): vector-wise 8-bit weights, outliers apart (Dettmers et al. 2022, arXiv:2208.07339)."""

    kind: Literal["8bit"] = "8bit"
    threshold: float = 6.0
    """Activations above it are computed in 16 bits."""

    bits: ClassVar[int | None] = 8

    def loading(self, compute: "torch.dtype", whole: list[str]) -> dict[str, Any]:
        """bitsandbytes' 8-bit configuration."""
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=self.threshold, llm_int8_skip_modules=whole
        )
        return {"quantization_config": config, **placement()}


class FourBit(Quantization):
    """QLoRA's 4 bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314)."""

    kind: Literal["4bit"] = "4bit"
    type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values a weight can take."""
    double: bool = True
    """Whether the scales are quantised too (0.37 bits a weight less)."""
    storage: Literal["uint8", "compute"] = "uint8"
    """How the packed bits are stored; FSDP can shard only `compute`, the computing type."""

    bits: ClassVar[int | None] = 4

    def loading(self, compute: "torch.dtype", whole: list[str]) -> dict[str, Any]:
        """bitsandbytes' 4-bit configuration; `compute` is the type of the products."""
        import torch
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.type,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_storage=compute if self.storage == "compute" else torch.uint8,
            llm_int8_skip_modules=whole,
        )
        return {"quantization_config": config, **placement()}


def placement() -> dict[str, Any]:
    """Each rank's own device: bitsandbytes quantises on arrival, and DDP needs a whole copy a rank."""
    import os

    import torch

    if not torch.cuda.is_available():
        return {"device_map": {"": "cpu"}}
    return {"device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}


@contextmanager
def without_hub_kernels() -> Iterator[None]:
    """Keep bitsandbytes 0.50.2 from fetching `kernels-community` code from the hub at its import."""
    import logging

    if "bitsandbytes" in sys.modules:
        yield
        return
    hidden = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # makes its import fail
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would warn that the import failed
    try:
        import bitsandbytes  # noqa: F401
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if hidden is not None:
            sys.modules["kernels"] = hidden
    yield


def guard(model: "nn.Module") -> None:
    """Keep 4-bit weights as they were trained against.

    bitsandbytes 0.50.2 re-packs them in place at the first evaluation on a CPU with AVX512-BF16:
    afterwards gradients are lost and `dequantize_4bit` returns noise.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def dequantized(module: "nn.Module") -> "torch.Tensor":
    """The weight that a quantised linear layer stands for, in fp32, shape (out, in)."""
    import bitsandbytes.functional as functional

    weight: Any = module.weight
    if type(module).__name__ == "Linear4bit":
        return functional.dequantize_4bit(weight.data, weight.quant_state).float()
    scales = weight.SCB if weight.SCB is not None else module.state.SCB  # type: ignore[union-attr]
    return weight.data.float() * (scales.float() / 127).unsqueeze(1)


def unquantize(model: "nn.Module") -> None:
    """Put an ordinary linear layer, dequantised, in the place of every quantised one."""
    from torch import nn

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ not in ("Linear4bit", "Linear8bitLt"):
                continue
            weight = dequantized(child)
            dense = nn.Linear(weight.shape[1], weight.shape[0], bias=child.bias is not None)
            dense.weight = nn.Parameter(weight, requires_grad=False)
            if child.bias is not None:
                dense.bias = nn.Parameter(child.bias.data.float(), requires_grad=False)  # type: ignore[union-attr]
            setattr(parent, name, dense)
