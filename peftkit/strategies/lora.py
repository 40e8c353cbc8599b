"""LoRA: a low-rank difference beside each linear layer; its rank-stabilised and DoRA variants."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from peftkit.architectures import head_names, linear_layers, matching
from peftkit.strategies import Strategy

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks import Task


class Lora(Strategy):
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

    default_lr: ClassVar[float] = 5e-4
    source: ClassVar[str] = "arXiv:2106.09685"

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel` around `model`; the head is trained beside the adapter."""
        from peft import LoraConfig, get_peft_model

        layers = linear_layers(model)
        if self.targets != "auto":
            layers = matching(self.targets, layers, "strategy.targets")
        transposed = any(type(model.get_submodule(n)).__name__ == "Conv1D" for n in layers)
        config = LoraConfig(
            task_type=task.peft_type,
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides by r: floats are fine
            lora_dropout=self.dropout,
            target_modules=layers,
            modules_to_save=head_names(model) if task.trains_head else None,
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
            fan_in_fan_out=transposed,  # GPT-2 keeps weights as (in, out)
        )
        with quiet_peft():
            # adapters rest in the base's type: the optimizer holds their fp32 master copies
            return get_peft_model(model, config, autocast_adapter_dtype=False)

    def merge(self, model: "nn.Module") -> "PreTrainedModel":
        """The base with alpha/r * B A added to each target (base weights must not be quantised)."""
        return model.merge_and_unload()  # type: ignore[operator,no-any-return]

    def save(self, model: "nn.Module", folder: Path) -> None:
        """A plain PEFT folder: `peft.PeftModel.from_pretrained` loads it."""
        model.save_pretrained(str(folder))  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """The PEFT folder on a fresh base."""
        from peft import PeftModel

        with quiet_peft():
            return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without one warning: peft 0.21 reads a property that transformers 5.23 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
