"""LoKr: the difference is the Kronecker product of a small matrix and a low-rank one."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from peftkit.deltas.base import AdapterLayer, Deltas
from peftkit.deltas.structured import KroneckerDelta
from peftkit.models.architectures import find_target_layers
from peftkit.models.linear_layers import check_no_conv1d, check_rank
from peftkit.strategies.base import PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Lokr(PeftStrategy):
    """W + alpha/r * C (x) B A, of full rank for all its smallness (Yeh et al. 2023), by PEFT."""

    kind: Literal["lokr"] = "lokr"
    r: PositiveInt = 8
    """Rank of the second matrix, which is trained in full if it is too small for that rank."""
    alpha: PositiveFloat = 8
    """Scale: the update is multiplied by alpha / r."""
    factor: PositiveInt | None = Field(default=None, ge=2)
    """Approximate size of the first matrix; null: as close to square as possible."""
    both: bool = False
    """Whether the first matrix is low-rank as well."""
    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the update's rows that are dropped in a step."""
    module_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a layer's update is dropped in a step."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""

    default_lr: ClassVar[float] = 1e-2
    source: ClassVar[str] = "arXiv:2309.14859"
    peft_types: ClassVar[tuple[str, ...]] = ("LOKR",)
    layer_tensors: ClassVar[tuple[str, ...]] = (
        "lokr_w1",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2",
        "lokr_w2_a",
        "lokr_w2_b",
    )

    def check_quantization(self, quantized: str | None) -> str | None:
        """PEFT 0.21 reads the difference's shape off the weight, and packed weights have none."""
        if quantized == "4bit":
            return (
                "'strategy: lokr' takes its shape from the weights, and 'quantize: 4bit' packs "
                "them - use strategy=lora, quantize=8bit or quantize=none"
            )
        return super().check_quantization(quantized)

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """Of linear layers; each side is one matrix or a product of two."""
        sides = []
        for side in ("lokr_w1", "lokr_w2"):
            names = [side] if layer.has(side) else [f"{side}_a", f"{side}_b"]
            if not layer.has(*names):
                return {}
            sides.append(tuple(layer.tensors[name] for name in names))
        scale = layer.setting("alpha", "alpha_pattern") / layer.setting("r", "rank_pattern")
        return {"weight": (KroneckerDelta(sides[0], sides[1], scale),)}

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """LoKr on the targets."""
        from peft import LoKrConfig

        layers = find_target_layers(model, self.targets)
        check_no_conv1d(model, layers, "LoKr")
        check_rank(model, layers, self.r)
        return LoKrConfig(
            task_type=task.peft_type_of(model),
            r=self.r,
            alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides by r: floats are fine
            decompose_both=self.both,
            decompose_factor=self.factor or -1,
            rank_dropout=self.rank_dropout,
            module_dropout=self.module_dropout,
            target_modules=layers,
            modules_to_save=saved_heads(model, task),
        )
