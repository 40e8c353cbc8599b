"""LoRA: a low-rank difference beside each linear layer; its rank-stabilised and DoRA variants."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from peftkit.architectures import targets_in
from peftkit.strategies import PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from peftkit.tasks import Task


class Lora(PeftStrategy):
    """W + alpha/r * B A beside frozen weights W (Hu et al. 2021, equation 3), through PEFT."""

    kind: Literal["lora"] = "lora"
    r: PositiveInt = 8
    """Rank of the difference."""
    alpha: PositiveFloat = 16
    """Scale: the difference is multiplied by alpha / r (rslora: alpha / sqrt(r))."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on what enters A."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """rslora: arXiv:2312.03732; dora: arXiv:2402.09353."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rslora": {"variant": "rslora"},
        "dora": {"variant": "dora"},
    }
    default_lr: ClassVar[float] = 5e-4
    source: ClassVar[str] = "arXiv:2106.09685"

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """LoRA on the targets, in the chosen variant."""
        from peft import LoraConfig

        layers = targets_in(model, self.targets)
        transposed = any(type(model.get_submodule(n)).__name__ == "Conv1D" for n in layers)
        return LoraConfig(
            task_type=task.peft_type,
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides by r: floats are fine
            lora_dropout=self.dropout,
            target_modules=layers,
            modules_to_save=saved_heads(model, task),
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
            fan_in_fan_out=transposed,  # GPT-2 keeps weights as (in, out)
        )
