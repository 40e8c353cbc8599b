"""Products: folds that are no low-rank difference: Hadamard, Kronecker, turns, scales."""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from peftkit.merging.checkpoint.tensors import Stored, load
from peftkit.merging.deltas.low_rank import Fold, Rows, Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Hadamard(Fold):
    """W + scale * (A1 B1) * (A2 B2), element by element (LoHa, arXiv:2108.06098, section 2)."""

    first: tuple[Stored, Stored]
    """A1 (out, r) and B1 (r, in)."""
    second: tuple[Stored, Stored]
    scale: float
    additive = True

    @property
    def parts(self) -> tuple[Stored, ...]:
        """All four."""
        return (*self.first, *self.second)

    def expects(self) -> str:
        """The products' shape."""
        return str([self.first[0].shape[0], self.first[1].shape[-1]])

    def fits(self, shape: Shape) -> bool:
        """Whether both products have this shape."""
        return all(
            (a.shape[0], b.shape[-1]) == shape and a.shape[-1] == b.shape[0]
            for a, b in (self.first, self.second)
        )

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows, with the products' rows added."""
        a, b, c, d = (load(part) for part in self.parts)
        a = a * (sign * self.scale)

        def added(first: int, last: int, rows: "Tensor") -> "Tensor":
            return rows.addcmul_(a[first:last] @ b, c[first:last] @ d)

        return added

    def is_nothing(self) -> bool:
        """Whether a factor is zero."""
        return any(not bool(load(part).any()) for part in self.parts)


@dataclass(frozen=True)
class Kronecker(Fold):
    """W + scale * (C x D), each whole or a product of two (LoKr, arXiv:2309.14859, equation 9)."""

    left: tuple[Stored, ...]
    right: tuple[Stored, ...]
    scale: float
    additive = True

    @property
    def parts(self) -> tuple[Stored, ...]:
        """One or two a side."""
        return (*self.left, *self.right)

    def sides(self) -> tuple[Shape, Shape]:
        """The shapes of C and D."""
        (first, second) = ((s[0].shape[0], s[-1].shape[-1]) for s in (self.left, self.right))
        return first, second

    def expects(self) -> str:
        """The product's shape."""
        return str([prod(sizes) for sizes in zip(*self.sides(), strict=True)])

    def fits(self, shape: Shape) -> bool:
        """Whether the product has this shape."""
        sizes = tuple(prod(sizes) for sizes in zip(*self.sides(), strict=True))
        return sizes == shape and all(len(part.shape) == 2 for part in self.parts)

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows, with the product's rows added."""
        import torch

        c, d = (whole(side) for side in (self.left, self.right))
        c = c * (sign * self.scale)

        def added(first: int, last: int, rows: "Tensor") -> "Tensor":
            at = torch.arange(first, last)
            product = c[at // len(d)].unsqueeze(2) * d[at % len(d)].unsqueeze(1)
            return rows.add_(product.reshape(rows.shape))

        return added

    def is_nothing(self) -> bool:
        """Whether a factor is zero."""
        return any(not bool(load(part).any()) for part in self.parts)


def whole(side: tuple[Stored, ...]) -> "Tensor":
    """One side of a Kronecker product."""
    return load(side[0]) if len(side) == 1 else load(side[0]) @ load(side[1])


@dataclass(frozen=True)
class Turn(Fold):
    """W R, block by block of the inputs (OFT, arXiv:2306.07280; in PEFT 0.21's conventions)."""

    weight: Stored
    """The upper triangles of skew-symmetric matrices, (blocks, size * (size - 1) / 2)."""
    size: int
    shared: bool
    """Whether one block turns all."""
    terms: int | None
    """Of the Cayley transform's Neumann series; None: solved."""
    radius: float | None
    """How far the constrained form may go; None: free."""

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The triangles."""
        return (self.weight,)

    def expects(self) -> str:
        """As many inputs as the blocks have."""
        return f"[any, {'a multiple of ' * self.shared}{len_of(self.weight) * self.size}]"

    def fits(self, shape: Shape) -> bool:
        """Whether the blocks cover the inputs."""
        if len(shape) != 2 or self.weight.shape[-1] != self.size * (self.size - 1) // 2:
            return False
        return shape[1] == self.size * (
            shape[1] // self.size if self.shared else len_of(self.weight)
        )

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows, turned."""
        turns = self.rotations()

        def turned(_first: int, _last: int, rows: "Tensor") -> "Tensor":
            return blockwise(rows, turns)

        return turned

    def rotations(self) -> "Tensor":
        """The matrices that PEFT multiplies W's transpose with, (blocks, size, size)."""
        import torch

        upper, lower = torch.triu_indices(self.size, self.size, 1)
        vectors = load(self.weight)
        skew = torch.zeros(len(vectors), self.size, self.size)
        skew[:, upper, lower] = vectors
        skew = skew - skew.transpose(1, 2)
        if self.radius is not None:
            limit = self.radius / len(skew) ** 0.5
            norms = torch.linalg.matrix_norm(skew)[:, None, None]
            skew = torch.where(norms <= limit, skew, limit * (skew / norms))
        one = torch.eye(self.size).expand_as(skew)
        if self.terms is not None:
            return neumann(one, skew, self.terms)
        solved: Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
        return solved

    def is_nothing(self) -> bool:
        """Whether nothing is turned."""
        return not bool(load(self.weight).any())


def len_of(tensor: Stored) -> int:
    """The size of the first axis."""
    return tensor.shape[0] if tensor.shape else 0


def neumann(one: "Tensor", skew: "Tensor", terms: int) -> "Tensor":
    """PEFT 0.21's series for the Cayley transform, whose last term counts once, not twice."""
    found, power = one.clone(), skew
    if terms > 1:
        found += 2 * skew
    if terms > 2:
        power = skew @ skew
        found += 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            found += 2 * power
        found += power @ skew
    return found


def blockwise(rows: "Tensor", turns: "Tensor") -> "Tensor":
    """Each block of the rows' columns times the transpose of its matrix."""
    import torch

    blocks = rows.reshape(len(rows), -1, turns.shape[-1])
    turned = torch.einsum("obi,bji->obj", blocks, turns.expand(blocks.shape[1], -1, -1))
    return turned.reshape(rows.shape)


@dataclass(frozen=True)
class Butterfly(Fold):
    """s (W R), block by block (BOFT, arXiv:2311.06243) as PEFT 0.21 has it without its CUDA code:
    one factor, no permutation."""

    turns: Stored
    """(1, blocks, size, size)"""
    scales: Stored
    """(out, 1)"""

    @property
    def parts(self) -> tuple[Stored, ...]:
        """Turns and scales."""
        return (self.turns, self.scales)

    def expects(self) -> str:
        """Outputs as scales, inputs as blocks."""
        return str([len_of(self.scales), prod(self.turns.shape[1:3])])

    def fits(self, shape: Shape) -> bool:
        """Whether both fit."""
        return shape == (len_of(self.scales), prod(self.turns.shape[1:3])) and (
            len_of(self.turns) == 1 and len(self.turns.shape) == 4
        )

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows, turned and scaled."""
        import torch

        data, scales = load(self.turns)[0], load(self.scales).reshape(-1, 1)
        skew = 0.5 * (data - data.transpose(1, 2))
        one = torch.eye(data.shape[-1]).expand_as(skew)
        turns = torch.linalg.solve(one + skew, one - skew, left=False)

        def turned(first: int, last: int, rows: "Tensor") -> "Tensor":
            return blockwise(rows, turns).mul_(scales[first:last])

        return turned

    def is_nothing(self) -> bool:
        """Whether it neither turns nor scales."""
        return not bool(load(self.turns).any()) and bool((load(self.scales) == 1).all())


@dataclass(frozen=True)
class Scales(Fold):
    """Rows, or columns, each times a number (IA3, arXiv:2205.05638, section 3.3)."""

    factors: Stored
    axis: int
    """0: a factor for each row; 1: for each column."""

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The factors."""
        return (self.factors,)

    def expects(self) -> str:
        """As many rows or columns as factors."""
        number = str(max(self.factors.shape, default=0))
        return f"[{number}, any]" if self.axis == 0 else f"[any, {number}]"

    def fits(self, shape: Shape) -> bool:
        """Whether there is a factor for each."""
        return len(shape) > self.axis and shape[self.axis] == prod(self.factors.shape)

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows, scaled."""
        factors = load(self.factors).reshape(-1)
        if self.axis == 1:
            return lambda first, last, rows: rows.mul_(factors)
        fitting = factors.reshape(-1, *[1] * (len(shape) - 1))
        return lambda first, last, rows: rows.mul_(fitting[first:last])

    def is_nothing(self) -> bool:
        """Whether all factors are one."""
        return bool((load(self.factors) == 1).all())
