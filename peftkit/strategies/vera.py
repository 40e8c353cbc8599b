"""VeRA: vectors that scale one pair of random projections, which all layers share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from peftkit.models.architectures import targets_in
from peftkit.models.linear_layers import keeps_weights_transposed
from peftkit.strategies.base import PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Vera(PeftStrategy):
    """W + diag(b) B diag(d) A with A and B frozen and random (Kopiczko et al. 2023), by PEFT."""

    kind: Literal["vera"] = "vera"
    r: PositiveInt = 256
    """Rank of the projections: larger than LoRA's, for only vectors are trained."""
    key: NonNegativeInt = 0
    """What the projections are made from: they are not saved, but made again."""
    initial: PositiveFloat = 0.1
    """Where d starts; b starts at 0."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on what enters A."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""

    default_lr: ClassVar[float] = 1e-2
    source: ClassVar[str] = "arXiv:2310.11454"

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """VeRA on the targets."""
        from peft import VeraConfig

        layers = targets_in(model, self.targets)
        with quiet_projections():
            return VeraConfig(
                task_type=task.peft_type_of(model),
                r=self.r,
                projection_prng_key=self.key,
                save_projection=False,
                d_initial=self.initial,
                vera_dropout=self.dropout,
                target_modules=layers,
                modules_to_save=saved_heads(model, task),
                fan_in_fan_out=keeps_weights_transposed(model, layers),
            )

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """The PEFT folder on a fresh base, its projections made from the key again."""
        with quiet_projections():
            return super().load(model, folder, task)


@contextmanager
def quiet_projections() -> Iterator[None]:
    """Without PEFT's warnings that projections are not saved: that is what the key is for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not", UserWarning)
        yield
