"""Deltas of LoHa, LoKr, OFT, BOFT, IA3 and trainable tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from peftkit.deltas.base import AdapterLayer, AdditiveDelta, RowUpdate, Shape, WeightDelta
from peftkit.storage.safetensors_files import StoredTensor, load_tensor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HadamardDelta(AdditiveDelta):
    """W + scale * (A1 B1) * (A2 B2), element by element (LoHa, arXiv:2108.06098, section 2)."""

    first: tuple[StoredTensor, StoredTensor]
    """A1 (out, r) and B1 (r, in)."""
    second: tuple[StoredTensor, StoredTensor]
    scale: float

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """All four factors."""
        return (*self.first, *self.second)

    @property
    def expected_shape(self) -> str:
        """The products' shape."""
        return str([self.first[0].shape[0], self.first[1].shape[-1]])

    def fits(self, shape: Shape) -> bool:
        """Whether both products have this shape."""
        return all(
            (a.shape[0], b.shape[-1]) == shape and a.shape[-1] == b.shape[0]
            for a, b in (self.first, self.second)
        )

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds rows of the product."""
        a, b, c, d = map(load_tensor, self.tensors)
        a = a * (sign * self.scale)
        return lambda first, end, rows: rows.addcmul_(a[first:end] @ b, c[first:end] @ d)


@dataclass(frozen=True)
class KroneckerDelta(AdditiveDelta):
    """W + scale * (C kron D) (LoKr, arXiv:2309.14859, equation 9)."""

    left: tuple[StoredTensor, ...]
    """C, or two matrices whose product is C."""
    right: tuple[StoredTensor, ...]
    """D, in the same way."""
    scale: float

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """One or two for each side."""
        return (*self.left, *self.right)

    @property
    def expected_shape(self) -> str:
        """The product's shape."""
        sides = [(side[0].shape[0], side[-1].shape[-1]) for side in (self.left, self.right)]
        return str([prod(sizes) for sizes in zip(*sides, strict=True)])

    def fits(self, shape: Shape) -> bool:
        """Whether the product has this shape."""
        return super().fits(shape) and all(len(tensor.shape) == 2 for tensor in self.tensors)

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds rows of the product."""
        import torch

        c, d = (product(side) for side in (self.left, self.right))
        c = c * (sign * self.scale)

        def add(first: int, end: int, rows: "Tensor") -> "Tensor":
            index = torch.arange(first, end)
            difference = c[index // len(d)].unsqueeze(2) * d[index % len(d)].unsqueeze(1)
            return rows.add_(difference.reshape(rows.shape))

        return add


def product(side: tuple[StoredTensor, ...]) -> "Tensor":
    """One side of a Kronecker product."""
    return load_tensor(side[0]) if len(side) == 1 else load_tensor(side[0]) @ load_tensor(side[1])


@dataclass(frozen=True)
class BlockRotation(WeightDelta):
    """W R with R orthogonal and block-diagonal (OFT, arXiv:2306.07280, as in PEFT 0.21)."""

    weight: StoredTensor
    """The upper triangles of skew-symmetric matrices, (blocks, size * (size - 1) / 2)."""
    size: int
    shared: bool
    """Whether one block is used for all inputs."""
    terms: int | None
    """Terms of the Neumann series for the Cayley transform; None: it is solved."""
    max_norm: float | None
    """The limit of constrained OFT; None: unconstrained."""

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The triangles."""
        return (self.weight,)

    @property
    def expected_shape(self) -> str:
        """As many inputs as all blocks have."""
        return f"[any, {'a multiple of ' * self.shared}{first_size(self.weight) * self.size}]"

    def fits(self, shape: Shape) -> bool:
        """Whether the blocks cover the inputs."""
        if len(shape) != 2 or self.weight.shape[-1] != self.size * (self.size - 1) // 2:
            return False
        blocks = shape[1] // self.size if self.shared else first_size(self.weight)
        return shape[1] == self.size * blocks

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Rotates the rows."""
        rotations = self.rotations()
        return lambda _first, _end, rows: rotate_blocks(rows, rotations)

    def rotations(self) -> "Tensor":
        """The matrices that PEFT multiplies W's transpose by, (blocks, size, size)."""
        import torch

        upper, lower = torch.triu_indices(self.size, self.size, 1)
        vectors = load_tensor(self.weight)
        skew = torch.zeros(len(vectors), self.size, self.size)
        skew[:, upper, lower] = vectors
        skew = skew - skew.transpose(1, 2)
        if self.max_norm is not None:
            limit = self.max_norm / len(skew) ** 0.5
            norms = torch.linalg.matrix_norm(skew)[:, None, None]
            skew = torch.where(norms <= limit, skew, limit * (skew / norms))
        identity = torch.eye(self.size).expand_as(skew)
        if self.terms is not None:
            return neumann_series(identity, skew, self.terms)
        solution: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
        return solution

    def is_zero(self) -> bool:
        """Whether every rotation is the identity."""
        return not bool(load_tensor(self.weight).any())


def first_size(tensor: StoredTensor) -> int:
    """The size of the first axis; 0 for a scalar."""
    return tensor.shape[0] if tensor.shape else 0


def neumann_series(identity: "Tensor", skew: "Tensor", terms: int) -> "Tensor":
    """PEFT 0.21's series for the Cayley transform, whose last term counts once, not twice."""
    total, power = identity.clone(), skew
    if terms > 1:
        total += 2 * skew
    if terms > 2:
        power = skew @ skew
        total += 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            total += 2 * power
        total += power @ skew
    return total


def rotate_blocks(rows: "Tensor", rotations: "Tensor") -> "Tensor":
    """Each block of the rows' columns times the transpose of its matrix."""
    import torch

    blocks = rows.reshape(len(rows), -1, rotations.shape[-1])
    rotations = rotations.expand(blocks.shape[1], -1, -1)
    return torch.einsum("obi,bji->obj", blocks, rotations).reshape(rows.shape)


@dataclass(frozen=True)
class ButterflyRotation(WeightDelta):
    """diag(s) W R (BOFT, arXiv:2311.06243) as PEFT 0.21 computes it without its CUDA extension: one
    butterfly factor, no permutation."""

    blocks: StoredTensor
    """(1, blocks, size, size)"""
    scales: StoredTensor
    """(out, 1)"""

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Blocks and scales."""
        return (self.blocks, self.scales)

    @property
    def expected_shape(self) -> str:
        """Outputs as there are scales, inputs as the blocks have."""
        return str([first_size(self.scales), prod(self.blocks.shape[1:3])])

    def fits(self, shape: Shape) -> bool:
        """Whether both fit, and there is one factor."""
        one_factor = first_size(self.blocks) == 1 and len(self.blocks.shape) == 4
        return one_factor and super().fits(shape)

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Rotates and scales the rows."""
        import torch

        data, scales = load_tensor(self.blocks)[0], load_tensor(self.scales).reshape(-1, 1)
        skew = 0.5 * (data - data.transpose(1, 2))
        identity = torch.eye(data.shape[-1]).expand_as(skew)
        rotations = torch.linalg.solve(identity + skew, identity - skew, left=False)
        return lambda first, end, rows: rotate_blocks(rows, rotations).mul_(scales[first:end])

    def is_zero(self) -> bool:
        """Whether it neither rotates nor scales."""
        rotates = bool(load_tensor(self.blocks).any())
        return not rotates and bool((load_tensor(self.scales) == 1).all())


@dataclass(frozen=True)
class Scaling(WeightDelta):
    """Each row, or column, times a factor (IA3, arXiv:2205.05638, section 3.3)."""

    factors: StoredTensor
    axis: int
    """0: a factor for each row; 1: for each column."""

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The factors."""
        return (self.factors,)

    @property
    def expected_shape(self) -> str:
        """As many rows or columns as factors."""
        count = str(max(self.factors.shape, default=0))
        return f"[{count}, any]" if self.axis == 0 else f"[any, {count}]"

    def fits(self, shape: Shape) -> bool:
        """Whether there is a factor for each."""
        return len(shape) > self.axis and shape[self.axis] == prod(self.factors.shape)

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Multiplies the rows."""
        factors = load_tensor(self.factors).reshape(-1)
        if self.axis == 1:
            return lambda _first, _end, rows: rows.mul_(factors)
        by_row = factors.reshape(-1, *[1] * (len(shape) - 1))
        return lambda first, end, rows: rows.mul_(by_row[first:end])

    def is_zero(self) -> bool:
        """Whether all factors are 1."""
        return bool((load_tensor(self.factors) == 1).all())


@dataclass(frozen=True)
class ReplacedRows(WeightDelta):
    """Some rows of the embeddings replaced: PEFT's trainable tokens."""

    rows: StoredTensor
    """(tokens, size)"""
    indices: tuple[int, ...]
    """The tokens' ids."""

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The new rows."""
        return (self.rows,)

    @property
    def expected_shape(self) -> str:
        """Long enough for every index, and as wide as the rows."""
        return f"[> {max(self.indices, default=0)}, {self.rows.shape[-1]}]"

    def fits(self, shape: Shape) -> bool:
        """Whether it has a row of this width at every index."""
        return (
            len(shape) == 2
            and self.rows.shape == (len(self.indices), shape[1])
            and all(0 <= index < shape[0] for index in self.indices)
        )

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Replaces the rows at the indices."""
        new_rows = load_tensor(self.rows)

        def replace(first: int, end: int, rows: "Tensor") -> "Tensor":
            for row, index in zip(new_rows, self.indices, strict=True):
                if first <= index < end:
                    rows[index - first] = row
            return rows

        return replace


def token_deltas(layer: AdapterLayer) -> tuple[ReplacedRows, ...]:
    """The rows of an embedding that PEFT's trainable tokens replace, if the adapter has any."""
    rows = layer.tensors.get("trainable_tokens_delta")
    if rows is None:
        return ()
    indices = layer.config.get("trainable_token_indices") or layer.config.get("token_indices") or []
    if isinstance(indices, Mapping):
        indices = next((ids for key, ids in indices.items() if layer.name.endswith(key)), [])
    return (ReplacedRows(rows, tuple(map(int, indices))),)
