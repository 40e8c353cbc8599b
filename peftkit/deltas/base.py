"""`WeightDelta`: the change that a merge makes to one tensor of the base."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.storage.safetensors_files import StoredTensor, load_tensor

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
RowUpdate = Callable[[int, int, "Tensor"], "Tensor"]
"""Takes the first row, the end of the rows and the rows in fp32, which it may overwrite; returns
the new rows."""


class WeightDelta(ABC):
    """A change to one tensor of the base. The adapter's tensors are read by `prepare`."""

    needs_all_rows: bool = False
    """Whether all rows of the tensor must be given at once."""
    additive: bool = False
    """Whether it adds something, which can be scaled and subtracted again."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that it uses."""

    @property
    def shared_tensors(self) -> tuple[StoredTensor, ...]:
        """The tensors that it shares with the deltas of other layers."""
        return ()

    @property
    @abstractmethod
    def expected_shape(self) -> str:
        """The shape of the base's tensor that it can change, for messages."""

    def fits(self, shape: Shape) -> bool:
        """Whether it can change a tensor of this shape."""
        return str(list(shape)) == self.expected_shape

    @abstractmethod
    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """The function that changes the rows of a tensor of this shape; an additive delta is
        multiplied by `sign`."""

    def is_zero(self) -> bool:
        """Whether it leaves every tensor unchanged."""
        return False


class AdditiveDelta(WeightDelta):
    """A delta that adds a product of the adapter's tensors."""

    additive = True

    def is_zero(self) -> bool:
        """Whether a factor of the product is all zero, as LoRA's B is before the first step."""
        return any(not bool(load_tensor(tensor).any()) for tensor in self.tensors)


@dataclass(frozen=True)
class ComputedDelta(AdditiveDelta):
    """W + compute(inputs): a delta whose whole difference is computed at once."""

    inputs: tuple[StoredTensor, ...]
    shape: Shape
    compute: Callable[..., "Tensor"]
    """Takes the inputs in fp32, in their order; returns what is added, of this `shape`."""

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The inputs."""
        return self.inputs

    @property
    def expected_shape(self) -> str:
        """The difference's shape."""
        return str(list(self.shape))

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds rows of the difference."""
        difference = self.compute(*map(load_tensor, self.tensors)).float() * sign
        return lambda first, end, rows: rows.add_(difference[first:end])


@dataclass(frozen=True)
class RandomProjection:
    """One of VeRA's two random matrices, for an adapter without them (arXiv:2310.11454)."""

    key: int
    shapes: tuple[Shape, Shape]
    """Of A (r, in) and B (out, r): PEFT generates one after the other."""
    index: int
    """0 for A, 1 for B."""

    @property
    def shape(self) -> Shape:
        """Its own shape."""
        return self.shapes[self.index]

    def generate(self) -> "Tensor":
        """The matrix in fp32, as PEFT 0.21 initializes it (Kaiming uniform)."""
        import torch

        generator = torch.Generator(device="cpu").manual_seed(self.key)
        matrices = []
        for shape in self.shapes:
            bound = 3.0**0.5 * (2.0**0.5 / shape[1] ** 0.5)
            matrices.append(torch.empty(shape).uniform_(-bound, bound, generator=generator))
        return matrices[self.index]


@dataclass(frozen=True)
class AdapterLayer:
    """A layer of the base, and the tensors that an adapter holds for it."""

    name: str
    weight_shape: Shape
    transposed: bool
    """Whether the weight is stored as (in, out), as in transformers' Conv1D."""
    has_bias: bool
    """Whether the base's layer has a bias."""
    tensors: Mapping[str, StoredTensor]
    """By their names within the layer, without the adapter's name: 'lora_A', 'lora_B.bias'."""
    shared: Mapping[str, StoredTensor | RandomProjection]
    """Tensors that all layers share."""
    config: Mapping[str, Any]
    """PEFT's configuration; the strategy's settings for a strategy that PEFT does not implement."""

    def setting(self, name: str, pattern: str) -> float:
        """A number that `pattern` ('rank_pattern') may set for this layer, else the common one.

        The first pattern that matches counts, as in PEFT 0.21's `get_pattern_key`.
        """
        for key, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", self.name):
                return float(value)
        return float(self.config[name])

    def has(self, *names: str) -> bool:
        """Whether the adapter holds all these tensors for the layer."""
        return self.tensors.keys() >= set(names)


Deltas = Mapping[str, tuple[WeightDelta, ...]]
"""The deltas of a layer's own tensors ('weight', 'bias'), each in the order they are applied."""
