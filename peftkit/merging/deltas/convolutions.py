"""Convolutions: the low-rank difference of a layer whose weight has axes of its kernel."""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from peftkit.merging.checkpoint.tensors import Stored, load
from peftkit.merging.deltas.low_rank import Fold, Rows, Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Convolution(Fold):
    """W + scale * B A at each place of the kernel: A convolves into r channels, B mixes those."""

    a: Stored
    """(r, in, *kernel)"""
    b: Stored
    """(out, r, 1, ...)"""
    scale: float
    additive = True

    @property
    def parts(self) -> tuple[Stored, ...]:
        """A and B."""
        return (self.a, self.b)

    def shape(self) -> Shape:
        """The shape of weight that it is for."""
        return (self.b.shape[0], *self.a.shape[1:])

    def expects(self) -> str:
        """That shape."""
        return str(list(self.shape()))

    def fits(self, shape: Shape) -> bool:
        """Whether the weight has it; one in groups has fewer inputs."""
        return self.shape() == shape and prod(self.b.shape[1:]) == self.a.shape[0]

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows with the product's rows added."""
        left = load(self.b).flatten(1) * (sign * self.scale)
        right = load(self.a).flatten(1)

        def added(first: int, last: int, rows: "Tensor") -> "Tensor":
            return rows.flatten(1).addmm_(left[first:last], right).reshape(rows.shape)

        return added

    def is_nothing(self) -> bool:
        """Whether a factor is all zero."""
        return any(not bool(load(part).any()) for part in self.parts)
