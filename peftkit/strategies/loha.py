"""LoHa: the difference is the Hadamard product of two low-rank matrices."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from peftkit.deltas.base import AdapterLayer, Deltas
from peftkit.deltas.structured import HadamardDelta
from peftkit.models.architectures import find_target_layers
from peftkit.models.linear_layers import check_no_conv1d, check_rank
from peftkit.strategies.base import PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Loha(PeftStrategy):
    """W + alpha/r * (B1 A1) o (B2 A2), of rank up to r^2 (Hyeon-Woo et al. 2021), through PEFT."""

    kind: Literal["loha"] = "loha"
    r: PositiveInt = 8
    """Rank of each of the two matrices."""
    alpha: PositiveFloat = 8
    """Scale: the update is multiplied by alpha / r."""
    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the update's rows that are dropped in a step."""
    module_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a layer's update is dropped in a step."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""

    default_lr: ClassVar[float] = 3e-3
    source: ClassVar[str] = "arXiv:2108.06098"
    peft_types: ClassVar[tuple[str, ...]] = ("LOHA",)
    layer_tensors: ClassVar[tuple[str, ...]] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

    def check_quantization(self, quantized: str | None) -> str | None:
        """PEFT 0.21 reads the difference's shape off the weight, and packed weights have none."""
        if quantized == "4bit":
            return (
                "'strategy: loha' takes its shape from the weights, and 'quantize: 4bit' packs "
                "them - use strategy=lora, quantize=8bit or quantize=none"
            )
        return super().check_quantization(quantized)

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """Of linear layers."""
        if not layer.has(*cls.layer_tensors):
            return {}
        a, b, c, d = (layer.tensors[name] for name in cls.layer_tensors)
        scale = layer.setting("alpha", "alpha_pattern") / layer.setting("r", "rank_pattern")
        return {"weight": (HadamardDelta((a, b), (c, d), scale),)}

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """LoHa on the targets."""
        from peft import LoHaConfig

        layers = find_target_layers(model, self.targets)
        check_no_conv1d(model, layers, "LoHa")
        check_rank(model, layers, self.r)
        return LoHaConfig(
            task_type=task.peft_type_of(model),
            r=self.r,
            alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides by r: floats are fine
            rank_dropout=self.rank_dropout,
            module_dropout=self.module_dropout,
            target_modules=layers,
            modules_to_save=saved_heads(model, task),
        )
