"""BOFT: rotations made of several sparse ones, as in a fast Fourier transform."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from peftkit.deltas.base import AdapterLayer, Deltas
from peftkit.deltas.structured import ButterflyRotation
from peftkit.errors import Fault, RecipeError
from peftkit.models.architectures import find_target_layers
from peftkit.models.linear_layers import check_block_size, check_no_conv1d
from peftkit.strategies.base import PeftStrategy, saved_heads

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks.base import Task


class Boft(PeftStrategy):
    """diag(s) W R with R a product of sparse rotations (Liu et al. 2023), through PEFT."""

    kind: Literal["boft"] = "boft"
    block_size: PositiveInt = Field(default=4, ge=2, multiple_of=2)
    """Inputs that are rotated together; must divide every layer's input size."""
    factors: PositiveInt = 1
    """Rotations to multiply; more than one only with a GPU and CUDA's compiler, which PEFT needs
    for them."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the blocks that are not rotated in a step."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""

    default_lr: ClassVar[float] = 1e-3
    source: ClassVar[str] = "arXiv:2311.06243"
    peft_types: ClassVar[tuple[str, ...]] = ("BOFT",)
    layer_tensors: ClassVar[tuple[str, ...]] = ("boft_R", "boft_s")

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """Of linear layers, with one factor."""
        if not layer.has(*cls.layer_tensors):
            return {}
        rotation = ButterflyRotation(layer.tensors["boft_R"], layer.tensors["boft_s"])
        return {"weight": (rotation,)}

    @classmethod
    def check_sum(cls, config: Mapping[str, Any]) -> str | None:
        """Rotations."""
        return "BOFT rotates the weights, which cannot be added"

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """BOFT on the targets."""
        from peft import BOFTConfig

        layers = find_target_layers(model, self.targets)
        check_no_conv1d(model, layers, "BOFT")
        check_block_size(model, layers, self.block_size, 2 ** (self.factors - 1))
        return BOFTConfig(
            task_type=task.peft_type_of(model),
            boft_block_size=self.block_size,
            boft_n_butterfly_factor=self.factors,
            boft_dropout=self.dropout,
            target_modules=layers,
            modules_to_save=saved_heads(model, task),
        )

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """A `PeftModel`, its rotations at the identity."""
        with self._extension(), on_meta(model.device.type == "meta"):
            return super().adapt(model, task)

    def load(self, model: "PreTrainedModel", folder: Path, task: "Task") -> "nn.Module":
        """The PEFT folder on a new base."""
        with self._extension():
            return super().load(model, folder, task)

    @contextmanager
    def _extension(self) -> Iterator[None]:
        """With PEFT's CUDA extension for several factors, and without for one.

        PEFT 0.21 tries to compile it for every layer, and where it cannot takes one factor for
        several without an error.
        """
        import peft.tuners.boft.layer

        layer: Any = peft.tuners.boft.layer
        if self.factors > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                built = layer.get_fbd_cuda()
            if built is None:
                what = (
                    "more than one needs PEFT's CUDA extension, which cannot be compiled here "
                    f"(got {self.factors}) - use strategy.factors=1 or strategy=oft"
                )
                fault = Fault("strategy.factors", what)
                raise RecipeError("the strategy cannot run on this machine:", [fault])
            yield
            return
        before, layer._FBD_CUDA = layer._FBD_CUDA, False
        try:
            yield
        finally:
            layer._FBD_CUDA = before


@contextmanager
def on_meta(meta: bool) -> Iterator[None]:
    """Without PEFT 0.21's loops over a permutation's entries, which the meta device has none of."""
    import torch
    from peft.tuners.boft.layer import BOFTLayer

    if not meta:
        yield
        return
    layer: Any = BOFTLayer
    before = layer.block_butterfly_perm, layer.perm2mat
    layer.block_butterfly_perm = lambda _, n, *__, **___: torch.arange(n)
    layer.perm2mat = lambda _, indices: torch.empty(len(indices), len(indices))
    try:
        yield
    finally:
        layer.block_butterfly_perm, layer.perm2mat = before
