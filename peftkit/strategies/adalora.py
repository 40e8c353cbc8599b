"""AdaLoRA: low-rank updates in SVD form, whose least important directions are pruned."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from peftkit.deltas.base import AdapterLayer, Deltas
from peftkit.deltas.low_rank import LowRankDelta
from peftkit.models.architectures import find_target_layers
from peftkit.models.linear_layers import check_rank, keeps_weights_transposed
from peftkit.strategies.base import PeftStrategy, TrainingHook, saved_heads

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class AdaLora(PeftStrategy):
    """W + alpha/r * B E A, a budget of ranks shared by all layers (Zhang et al. 2023), by PEFT."""

    kind: Literal["adalora"] = "adalora"
    target_r: PositiveInt = 8
    """Final rank, averaged over the layers."""
    init_r: PositiveInt = 12
    """Initial rank of every layer; saved tensors keep it, with pruned directions set to zero."""
    alpha: PositiveFloat = 16
    """Scale: the update is multiplied by alpha / init_r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the inputs of A."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""
    tinit: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps before pruning starts."""
    tfinal: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps after pruning ends."""
    interval: PositiveInt = 10
    """Steps between prunings (the paper's delta T)."""
    beta1: float = Field(default=0.85, gt=0, lt=1)
    """Decay of the moving average of importance (equation 9)."""
    beta2: float = Field(default=0.85, gt=0, lt=1)
    """Decay of the moving average of uncertainty (equation 10)."""
    orthogonality: NonNegativeFloat = 0.5
    """Weight of the orthogonality penalty on A and B (equation 4)."""

    # master weights stored next to the weights would restore a pruned direction
    autocast_adapter_dtype: ClassVar[bool] = True
    default_lr: ClassVar[float] = 5e-3
    source: ClassVar[str] = "arXiv:2303.10512"
    peft_types: ClassVar[tuple[str, ...]] = ("ADALORA",)
    layer_tensors: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B", "lora_E")

    @model_validator(mode="after")
    def _there_is_something_to_prune(self) -> Self:
        if self.target_r >= self.init_r:
            raise ValueError(
                f"target_r={self.target_r} is not below init_r={self.init_r}: there is nothing to "
                "prune - use a larger strategy.init_r, or strategy=lora"
            )
        if self.tinit + self.tfinal >= 1:
            raise ValueError(
                f"tinit={self.tinit} and tfinal={self.tfinal} leave no steps to prune in - use "
                "shares that add up to less than 1"
            )
        return self

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """B E A; PEFT 0.21 divides by the initial rank, and a small number."""
        if not layer.has(*cls.layer_tensors):
            return {}
        a, b, values = (layer.tensors[name] for name in cls.layer_tensors)
        rank, alpha = float(layer.config["init_r"]), float(layer.config["lora_alpha"])
        scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)
        return {"weight": (LowRankDelta(a, b, scale, layer.transposed, rank_factors=values),)}

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """AdaLoRA on the targets; the training hook sets its schedule."""
        from peft import AdaLoraConfig

        layers = find_target_layers(model, self.targets)
        check_rank(model, layers, self.init_r, "strategy.init_r")
        return AdaLoraConfig(
            task_type=task.peft_type_of(model),
            target_r=self.target_r,
            init_r=self.init_r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides by r: floats are fine
            lora_dropout=self.dropout,
            target_modules=layers,
            modules_to_save=saved_heads(model, task),
            fan_in_fan_out=keeps_weights_transposed(model, layers),
            deltaT=self.interval,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orthogonality,
            total_step=1,
        )

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel`, every layer at the initial rank, every update 0."""
        return with_scales_of_type(super().adapt(model, task), model.dtype)

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """The PEFT folder on a new base."""
        return with_scales_of_type(super().load(model, folder, task), model.dtype)

    def training_hook(self, model: "nn.Module", steps: int) -> TrainingHook:
        """The rank budget over `steps` training steps."""
        first, last = round(self.tinit * steps), round(self.tfinal * steps)
        # PEFT raises an error for a schedule without a pruning step
        return Budget(model, min(first, max(0, steps - last - 1)), last, steps)

    def save(self, model: "nn.Module", folder: Path) -> None:
        """A plain PEFT folder at the initial rank: PEFT would cut the tensors to the last pruning's
        ranks, which the checkpoint that is kept need not be of."""
        config: Any = model.peft_config["default"]  # type: ignore[index]
        pattern, config.rank_pattern = config.rank_pattern, None
        super().save(model, folder)
        config.rank_pattern = pattern


def with_scales_of_type(model: "nn.Module", dtype: "torch.dtype") -> "nn.Module":
    """`model` with the ranks that PEFT divides by in the base's type, and not trained.

    On a quantized layer PEFT 0.21 multiplies with them last: fp32 ones would turn what a bf16
    layer gives into fp32. And where it casts what is trained, it has them trained, too.
    """
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(False)
    return model


class Budget:
    """The training hook around PEFT's `RankAllocator`: the penalty, and pruning after each step."""

    def __init__(self, model: Any, first: int, last: int, steps: int) -> None:
        self.model = model.base_model
        self.config = model.peft_config["default"]
        self.config.tinit, self.config.tfinal, self.config.total_step = first, last, steps
        self.allocator = self.model.rankallocator
        self.step = 0

    def penalty(self) -> "Tensor":
        """How far A and B are from orthogonal, on average (equation 4): PEFT adds it to the loss of
        models that give one."""
        import torch

        apart = []
        for name, matrix in self.model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                square = matrix @ matrix.T if ".lora_A." in name else matrix.T @ matrix
                one = torch.eye(len(square), dtype=square.dtype, device=square.device)
                apart.append(torch.linalg.matrix_norm(square - one))
        mean: Tensor = self.config.orth_reg_weight * torch.stack(apart).mean()
        return mean

    def after_step(self) -> None:
        """Update what is known of each weight's importance; prune where a pruning is due."""
        self.step += 1
        self.model.update_and_allocate(self.step)

    def state_dict(self) -> dict[str, Any]:
        """The step, the importances and what is pruned."""
        return {
            "step": self.step,
            "rank_pattern": self.config.rank_pattern,
            **{name: dict(getattr(self.allocator, name)) for name in AVERAGES},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the saved state."""
        places = {name: p.device for name, p in self.model.model.named_parameters()}
        self.step, self.config.rank_pattern = state["step"], state["rank_pattern"]
        for name in AVERAGES:
            found = {n: t.to(places[n]) for n, t in state[name].items()}
            setattr(self.allocator, name, found)


AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The moving averages of PEFT's `RankAllocator`."""
