"""Deltas of LoRA and its variants, AdaLoRA and VeRA."""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from peftkit.deltas.base import AdditiveDelta, RandomProjection, RowUpdate, Shape, WeightDelta
from peftkit.storage.safetensors_files import StoredTensor, load_tensor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRankDelta(AdditiveDelta):
    """W + scale * B A (Hu et al. 2021, equation 3), with optional diagonal factors."""

    a: StoredTensor | RandomProjection
    """(r, in)"""
    b: StoredTensor | RandomProjection
    """(out, r)"""
    scale: float
    transposed: bool = False
    """Whether the weight is stored as (in, out): an embedding's or a Conv1D's."""
    rank_factors: StoredTensor | None = None
    """Multiplies A's rows, (r,): AdaLoRA's E, VeRA's d."""
    output_factors: StoredTensor | None = None
    """Multiplies B's rows, (out,): VeRA's b."""
    shared: bool = False
    """Whether A and B belong to all layers, and are cut to the size of this one (VeRA)."""

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """A and B, if they are its own, and the factors."""
        own = () if self.shared else (self.a, self.b)
        factors = (*own, self.rank_factors, self.output_factors)
        return tuple(tensor for tensor in factors if isinstance(tensor, StoredTensor))

    @property
    def shared_tensors(self) -> tuple[StoredTensor, ...]:
        """A and B, if they are shared and saved."""
        pair = (self.a, self.b) if self.shared else ()
        return tuple(tensor for tensor in pair if isinstance(tensor, StoredTensor))

    @property
    def shape(self) -> Shape:
        """The shape of B A as the weight is stored."""
        out_features, in_features = self.b.shape[0], self.a.shape[-1]
        return (in_features, out_features) if self.transposed else (out_features, in_features)

    @property
    def expected_shape(self) -> str:
        """The product's shape."""
        return str(list(self.shape))

    def fits(self, shape: Shape) -> bool:
        """Whether B A has this shape, or is at least as large where it is shared."""
        if self.a.shape[0] != self.b.shape[-1] or len(shape) != 2:
            return False
        if self.shared:
            return all(have >= want for have, want in zip(self.shape, shape, strict=True))
        return self.shape == shape

    def factors(self, shape: Shape, sign: float) -> tuple["Tensor", "Tensor"]:
        """Two matrices whose product is added to a weight of this shape."""
        out_features, in_features = shape[::-1] if self.transposed else shape
        a = matrix(self.a)[:, :in_features]
        b = matrix(self.b)[:out_features] * (sign * self.scale)
        if self.rank_factors is not None:
            a = load_tensor(self.rank_factors).reshape(-1, 1) * a
        if self.output_factors is not None:
            b = load_tensor(self.output_factors).reshape(-1, 1) * b
        return (a.T.contiguous(), b.T.contiguous()) if self.transposed else (b, a.contiguous())

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds rows of the product."""
        left, right = self.factors(shape, sign)
        return lambda first, end, rows: rows.addmm_(left[first:end], right)


def matrix(factor: StoredTensor | RandomProjection) -> "Tensor":
    """A factor in fp32."""
    return load_tensor(factor) if isinstance(factor, StoredTensor) else factor.generate()


@dataclass(frozen=True)
class ConvolutionDelta(AdditiveDelta):
    """W + scale * B A at each position of the kernel: A maps to r channels, B mixes them."""

    a: StoredTensor
    """(r, in, *kernel)"""
    b: StoredTensor
    """(out, r, 1, ...)"""
    scale: float

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """A and B."""
        return (self.a, self.b)

    @property
    def expected_shape(self) -> str:
        """(out, in, *kernel); a grouped convolution has fewer inputs and does not fit."""
        return str([self.b.shape[0], *self.a.shape[1:]])

    def fits(self, shape: Shape) -> bool:
        """Whether the weight has that shape, and A and B the same rank."""
        return super().fits(shape) and prod(self.b.shape[1:]) == self.a.shape[0]

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds rows of the product."""
        left = load_tensor(self.b).flatten(1) * (sign * self.scale)
        right = load_tensor(self.a).flatten(1)

        def add(first: int, end: int, rows: "Tensor") -> "Tensor":
            return rows.flatten(1).addmm_(left[first:end], right).reshape(rows.shape)

        return add


@dataclass(frozen=True)
class DoraDelta(WeightDelta):
    """m (W + scale * B A) / |W + scale * B A| per output (DoRA, arXiv:2402.09353, equation 5)."""

    low_rank: LowRankDelta
    magnitude: StoredTensor
    """(out,)"""

    @property
    def needs_all_rows(self) -> bool:  # type: ignore[override]
        """Only for a transposed weight, whose outputs are columns."""
        return self.low_rank.transposed

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """A, B and the magnitude."""
        return (*self.low_rank.tensors, self.magnitude)

    @property
    def expected_shape(self) -> str:
        """The low-rank product's shape."""
        return self.low_rank.expected_shape

    def fits(self, shape: Shape) -> bool:
        """Whether the product fits, and there is a magnitude for each output."""
        outputs = shape[-1] if self.low_rank.transposed else shape[0]
        return self.low_rank.fits(shape) and max(self.magnitude.shape, default=0) == outputs

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds the product, then scales each output to its magnitude."""
        import torch

        add, magnitude = self.low_rank.prepare(shape), load_tensor(self.magnitude).reshape(-1)
        axis = 0 if self.low_rank.transposed else 1

        def rescale(first: int, end: int, rows: "Tensor") -> "Tensor":
            updated = add(first, end, rows)
            norms: Tensor = torch.linalg.vector_norm(updated, dim=axis)
            factors = magnitude / norms if axis == 0 else magnitude[first:end] / norms
            return updated.mul_(factors.unsqueeze(axis))

        return rescale


@dataclass(frozen=True)
class ResidualWeight(WeightDelta):
    """W without its principal part, which PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775)
    move into the adapter at initialization; computed again in the same way."""

    method: str
    """'pissa' or 'olora'."""
    r: int
    scale: float
    transposed: bool
    needs_all_rows = True

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """None: the part is computed from the weight."""
        return ()

    @property
    def expected_shape(self) -> str:
        """Any matrix of rank r or more."""
        return f"[>= {self.r}, >= {self.r}]"

    def fits(self, shape: Shape) -> bool:
        """Whether it is such a matrix."""
        return len(shape) == 2 and min(shape) >= self.r

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Subtracts the principal part."""

        def subtract(_first: int, _end: int, rows: "Tensor") -> "Tensor":
            weight = rows.T if self.transposed else rows
            residual = weight - self.principal_part(weight)
            return residual.T.contiguous() if self.transposed else residual

        return subtract

    def principal_part(self, weight: "Tensor") -> "Tensor":
        """The part of rank r of a weight (out, in)."""
        import torch

        if self.method == "olora":
            q, upper = torch.linalg.qr(weight)
            part: Tensor = self.scale * q[:, : self.r] @ upper[: self.r]
        else:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            part = (left[:, : self.r] * values[: self.r]) @ right[: self.r]
        return part


@dataclass(frozen=True)
class BiasDelta(AdditiveDelta):
    """b + scale * the bias of LoRA's B."""

    bias: StoredTensor
    scale: float

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The bias."""
        return (self.bias,)

    @property
    def expected_shape(self) -> str:
        """The same shape."""
        return str(list(self.bias.shape))

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds the bias."""
        added = load_tensor(self.bias) * (sign * self.scale)
        return lambda first, end, rows: rows.add_(added[first:end])
