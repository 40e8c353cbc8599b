"""Folding: what a low-rank adapter makes of a weight, in fp32, some of its rows at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.merging.checkpoint.tensors import Stored, load

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
Rows = Callable[[int, int, "Tensor"], "Tensor"]
"""From the first row, the row behind the last and the rows as they are: the new rows."""


@dataclass(frozen=True)
class Drawn:
    """One of the two random projections that a VeRA adapter did not save (arXiv:2310.11454)."""

    key: int
    shapes: tuple[Shape, Shape]
    """Of A (r, in) and of B (out, r): PEFT draws one after the other."""
    which: int

    @property
    def shape(self) -> Shape:
        """Its own shape."""
        return self.shapes[self.which]


def value(part: "Stored | Drawn") -> "Tensor":
    """The part, in fp32."""
    if isinstance(part, Stored):
        return load(part)
    import torch

    generator = torch.Generator(device="cpu").manual_seed(part.key)
    drawn = []
    for shape in part.shapes:
        bound = 3.0**0.5 * (2.0**0.5 / shape[1] ** 0.5)  # Kaiming's, as PEFT 0.21 has it
        drawn.append(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    return drawn[part.which]


class Fold(ABC):
    """What becomes of one tensor of the base; its parts are read when it is `ready`."""

    whole = False
    """Whether the rows must be seen together."""
    additive = False
    """Whether it adds something that could be subtracted again."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Stored, ...]:
        """The adapter's tensors that it takes."""

    @abstractmethod
    def expects(self) -> str:
        """The shape of weight that it fits, for messages."""

    @abstractmethod
    def fits(self, shape: Shape) -> bool:
        """Whether a weight of this shape can take it."""

    @abstractmethod
    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The function for a weight of this shape; `sign` is -1 where it is subtracted."""

    def is_nothing(self) -> bool:
        """Whether it leaves every weight as it is."""
        return False


@dataclass(frozen=True)
class LowRank(Fold):
    """W + scale * B A (Hu et al. 2021, equation 3), with further factors as some methods have.

    Of an embedding, and of a Conv1D, the weight lies transposed.
    """

    a: Stored | Drawn
    """(r, in)"""
    b: Stored | Drawn
    """(out, r)"""
    scale: float
    transposed: bool = False
    between: Stored | None = None
    """What multiplies each of the r (AdaLoRA's E, VeRA's d)."""
    behind: Stored | None = None
    """What multiplies each output (VeRA's b)."""
    shared: bool = False
    """Whether A and B are larger than the weight and belong to others, too (VeRA)."""
    additive = True

    @property
    def parts(self) -> tuple[Stored, ...]:
        """A, B and the factors; shared ones are counted apart."""
        own = () if self.shared else (self.a, self.b)
        every = (*own, self.between, self.behind)
        return tuple(part for part in every if isinstance(part, Stored))

    def shape(self) -> Shape:
        """The shape of weight that B A is for, as it lies."""
        wide, narrow = self.b.shape[0], self.a.shape[-1]
        return (narrow, wide) if self.transposed else (wide, narrow)

    def expects(self) -> str:
        """The product's shape."""
        return str(list(self.shape()))

    def fits(self, shape: Shape) -> bool:
        """Whether B A has this shape; shared projections are cut to it."""
        if self.a.shape[0] != self.b.shape[-1] or len(shape) != 2:
            return False
        if self.shared:
            return all(have >= want for have, want in zip(self.shape(), shape, strict=True))
        return self.shape() == shape

    def factors(self, shape: Shape, sign: float) -> tuple["Tensor", "Tensor"]:
        """Two matrices whose product is what is added to a weight of this shape."""
        wide, narrow = shape[::-1] if self.transposed else shape
        a, b = value(self.a)[:, :narrow], value(self.b)[:wide] * (sign * self.scale)
        if self.between is not None:
            a = load(self.between).reshape(-1, 1) * a
        if self.behind is not None:
            b = load(self.behind).reshape(-1, 1) * b
        return (a.T.contiguous(), b.T.contiguous()) if self.transposed else (b, a.contiguous())

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows with the product's rows added."""
        left, right = self.factors(shape, sign)
        return lambda first, last, rows: rows.addmm_(left[first:last], right)

    def is_nothing(self) -> bool:
        """Whether a factor is all zero, as B is before the first step."""
        return any(not bool(load(part).any()) for part in self.parts)


@dataclass(frozen=True)
class Dora(Fold):
    """m (W + scale * B A) / |W + scale * B A|, output by output (arXiv:2402.09353, equation 5)."""

    difference: LowRank
    magnitude: Stored

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Only where the weight is transposed: norms go over rows, which are whole in a block."""
        return self.difference.transposed

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The difference's and the magnitude."""
        return (*self.difference.parts, self.magnitude)

    def expects(self) -> str:
        """The difference's shape."""
        return self.difference.expects()

    def fits(self, shape: Shape) -> bool:
        """Whether the difference fits, and the magnitude has a number for each output."""
        outputs = shape[-1] if self.difference.transposed else shape[0]
        numbers = max(self.magnitude.shape, default=0)
        return self.difference.fits(shape) and numbers == outputs

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows, turned and set to their magnitudes."""
        import torch

        add, magnitude = self.difference.ready(shape), load(self.magnitude).reshape(-1)
        axis = 0 if self.difference.transposed else 1

        def turned(first: int, last: int, rows: "Tensor") -> "Tensor":
            moved = add(first, last, rows)
            norms: Tensor = torch.linalg.vector_norm(moved, dim=axis)
            factors = magnitude / norms if axis == 0 else magnitude[first:last] / norms
            return moved.mul_(factors.unsqueeze(axis))

        return turned


@dataclass(frozen=True)
class Residual(Fold):
    """W less its own largest part: what PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) put
    beside their adapter, found again in the same way."""

    method: str
    r: int
    scale: float
    transposed: bool
    whole = True

    @property
    def parts(self) -> tuple[Stored, ...]:
        """None: it is made of the weight alone."""
        return ()

    def expects(self) -> str:
        """Any matrix of rank r."""
        return f"[>= {self.r}, >= {self.r}]"

    def fits(self, shape: Shape) -> bool:
        """Whether it is a matrix that can have the rank."""
        return len(shape) == 2 and min(shape) >= self.r

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The weight without the part."""
        import torch

        def rest(_first: int, _last: int, rows: "Tensor") -> "Tensor":
            weight = rows.T if self.transposed else rows
            if self.method == "olora":
                q, upper = torch.linalg.qr(weight)
                part = self.scale * q[:, : self.r] @ upper[: self.r]
            else:
                left, values, right = torch.linalg.svd(weight, full_matrices=False)
                part = (left[:, : self.r] * values[: self.r]) @ right[: self.r]
            less: Tensor = weight - part
            return less.T.contiguous() if self.transposed else less

        return rest


@dataclass(frozen=True)
class Shift(Fold):
    """b + scale * what LoRA's B adds to a bias."""

    by: Stored
    scale: float
    additive = True

    @property
    def parts(self) -> tuple[Stored, ...]:
        """What is added."""
        return (self.by,)

    def expects(self) -> str:
        """The same shape."""
        return str(list(self.by.shape))

    def fits(self, shape: Shape) -> bool:
        """Whether the shapes are the same."""
        return self.by.shape == shape

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The bias, moved."""
        by = load(self.by) * (sign * self.scale)
        return lambda first, last, rows: rows.add_(by[first:last])

    def is_nothing(self) -> bool:
        """Whether it adds zero."""
        return not bool(load(self.by).any())


@dataclass(frozen=True)
class NewRows(Fold):
    """Some rows replaced: PEFT's trainable tokens."""

    rows: Stored
    indices: tuple[int, ...]

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The new rows."""
        return (self.rows,)

    def expects(self) -> str:
        """As wide as the rows, and long enough."""
        return f"[> {max(self.indices, default=0)}, {self.rows.shape[-1]}]"

    def fits(self, shape: Shape) -> bool:
        """Whether it has rows of this width at all of the places."""
        return (
            len(shape) == 2
            and self.rows.shape == (len(self.indices), shape[1])
            and all(0 <= index < shape[0] for index in self.indices)
        )

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows, those at the places changed."""
        new = load(self.rows)

        def changed(first: int, last: int, rows: "Tensor") -> "Tensor":
            for row, index in zip(new, self.indices, strict=True):
                if first <= index < last:
                    rows[index - first] = row
            return rows

        return changed
