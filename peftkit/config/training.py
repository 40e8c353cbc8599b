"""The `training` part of a recipe: how the chosen weights are trained."""

import importlib.util
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from peftkit.errors import nearest
from peftkit.registry import Settings

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
WITHOUT_EFFECT = ("save_steps", "threads", "report_to", "proof")
"""Settings that do not change the result, and so are no part of a run's digest."""


class Training(Settings):
    """How the chosen weights are trained."""

    epochs: PositiveFloat = 3
    """Passes over the train split."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: PositiveInt = 32
    """Examples per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Examples per forward pass on one rank; auto: what fits in memory, up to `max_tokens`."""
    max_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens per forward pass that `micro_batch_size: auto` aims at, for the longest rows; auto:
    2,048 on a CPU, where more is no faster and takes more memory, 16,384 on a GPU."""
    lr: PositiveFloat | Literal["auto"] = "auto"
    """Peak learning rate; auto: the default of the strategy."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "exponential", "step"] = "linear"
    """Learning rate schedule after warmup; exponential ends at 1 %, step halves it five times."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW; biases and norms have none."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient clipping: the largest norm of the gradient; null: no clipping."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label's probability that is spread over all labels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Dropout of the model; auto: its own where the base model is trained, 0 where it is frozen."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Data type of weights and matrix products; auto: the faster one, as measured."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them."""
    order: Literal["length_grouped", "random"] = "length_grouped"
    """Order of the examples: grouped by length, or random."""
    packing: Literal["auto", "on", "off"] = "auto"
    """on: no padding, where that is proven to be equal for the architecture; auto: where it is also
    faster, as measured on some batches of the run; off: always pad."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of new weights, the order of examples, and dropout."""
    evaluate: PositiveInt | Literal["epoch", "never"] = "epoch"
    """Evaluate on the validation split every this many steps, every epoch, or never."""
    patience: PositiveInt | None = None
    """Early stopping: stop after this many evaluations without a better score."""
    keep: Literal["best", "last"] = "best"
    """Weights that the run ends with: the best on the validation split, or the last."""
    save_steps: PositiveInt | Literal["epoch"] = "epoch"
    """Save a checkpoint every this many steps, or every epoch."""
    threads: PositiveInt | Literal["auto"] = "auto"
    """CPU threads per rank; auto: its share of the cores (launchers set 1, which is undone)."""
    proof: Literal["full", "run"] = "full"
    """full: the artifact is also loaded in a fresh process and must give the same logits."""
    report_to: list[str] = Field(default_factory=list)
    """Experiment trackers to log to: tensorboard, wandb, mlflow, trackio."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `transformers.TrainingArguments`, passed on unchanged."""

    @field_validator("report_to")
    @classmethod
    def _trackers_are_known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in TRACKERS:
                raise ValueError(f"no tracker is called {name!r} - {nearest(name, TRACKERS)}")
            if importlib.util.find_spec(name) is None:
                raise ValueError(f"the tracker {name!r} is not installed - pip install {name}")
        return names
