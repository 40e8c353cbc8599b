"""VeRA: vectors that scale one pair of random projections, which all layers share."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from peftkit.deltas.base import AdapterLayer, Deltas, RandomProjection
from peftkit.deltas.low_rank import LowRankDelta
from peftkit.models.architectures import find_target_layers
from peftkit.models.linear_layers import keeps_weights_transposed
from peftkit.storage.safetensors_files import StoredTensor
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
    """Seed of the projections, which are not saved but generated again."""
    initial: PositiveFloat = 0.1
    """Initial value of d; b starts at 0."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the inputs of A."""
    targets: list[str] | Literal["auto"] = "auto"
    """Layers to adapt, by the ends of their names; auto: all linear layers of all blocks."""

    default_lr: ClassVar[float] = 1e-2
    source: ClassVar[str] = "arXiv:2310.11454"
    peft_types: ClassVar[tuple[str, ...]] = ("VERA",)
    layer_tensors: ClassVar[tuple[str, ...]] = ("vera_lambda_b", "vera_lambda_d")
    shared_tensors: ClassVar[tuple[str, ...]] = ("vera_A", "vera_B")

    @classmethod
    def weight_deltas(cls, layer: AdapterLayer) -> Deltas:
        """b B d A with the projections that all layers share."""
        if not layer.has(*cls.layer_tensors):
            return {}
        b, d = (layer.tensors[name] for name in cls.layer_tensors)
        a_matrix, b_matrix = (layer.shared[name] for name in cls.shared_tensors)
        factors = {"rank_factors": d, "output_factors": b}
        delta = LowRankDelta(a_matrix, b_matrix, 1.0, layer.transposed, **factors, shared=True)
        return {"weight": (delta,)}

    @classmethod
    def share_tensors(
        cls, layers: Sequence[AdapterLayer], saved: Mapping[str, StoredTensor]
    ) -> Mapping[str, StoredTensor | RandomProjection]:
        """The saved projections, or those of the key: large enough for every layer, as in PEFT."""
        sizes = [
            (layer.tensors["vera_lambda_b"].shape[0], layer.weight_shape)
            for layer in layers
            if layer.has("vera_lambda_b")
        ]
        if saved.keys() >= set(cls.shared_tensors) or not sizes:
            return saved
        out_features = max(out for out, _ in sizes)
        in_features = max(shape[1] if shape[0] == out else shape[0] for out, shape in sizes)
        r, key = (int(layers[0].config[name]) for name in ("r", "projection_prng_key"))
        shapes = ((r, in_features), (out_features, r))
        names = enumerate(cls.shared_tensors)
        return {name: RandomProjection(key, shapes, index) for index, name in names}

    def configuration(self, model: "PreTrainedModel", task: "Task") -> "PeftConfig":
        """VeRA on the targets."""
        from peft import VeraConfig

        layers = find_target_layers(model, self.targets)
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
        """The PEFT folder on a new base, with projections generated from the key."""
        with quiet_projections():
            return super().load(model, folder, task)


@contextmanager
def quiet_projections() -> Iterator[None]:
    """Without PEFT's warnings that projections are not saved: that is what the key is for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not", UserWarning)
        yield
