"""Mixing: what the differences of several adapters come to, tensor by tensor."""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from peftkit.errors import RunError, nearest
from peftkit.merging.checkpoint.tensors import Stored
from peftkit.merging.deltas.low_rank import Fold, Rows, Shape
from peftkit.registry import Settings

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["sum", "magnitude_prune", "ties", "dare_linear", "dare_ties"]
METHODS: tuple[str, ...] = get_args(Method)
DRAWING = ("dare_linear", "dare_ties")
"""The methods that drop elements by chance."""
HALF = 0.5
"""The density where none is given."""


class Mix(Settings):
    """How several adapters become one.

    A tensor's task vectors are the adapters' differences to it, in full (not their factors, whose
    product after pruning each is no pruned difference). 'sum': their weighted sum (task arithmetic,
    arXiv:2212.04089); 'magnitude_prune': the same of the largest elements; 'ties':
    arXiv:2306.01708; 'dare_linear' and 'dare_ties': arXiv:2311.03099. All but the sum are PEFT's
    (`peft.utils.merge_utils`), which prunes tensor by tensor.
    """

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    """What each adapter's difference is multiplied with."""
    method: Method = "sum"
    density: float | None = None
    """The share of elements that is kept; null for the sum."""
    seed: int | None = None
    """Of what is dropped by chance; null where nothing is."""
    head_from: str | None = None
    """The adapter whose head the merged model has; null where there is no choice."""


def mix_of(
    folders: Sequence[Path],
    weights: Sequence[float] | None,
    method: str | None,
    density: float | None,
    seed: int | None,
    head_from: Path | None,
) -> Mix | None:
    """The mix that was asked for; None for one adapter alone, as it is.

    Raises `RunError` for settings that contradict each other.
    """
    adapters = [str(folder) for folder in folders]
    given = (weights, method, density, seed, head_from)
    if len(adapters) == 1 and all(value is None for value in given):
        return None
    method = method or "sum"
    if method not in METHODS:
        raise RunError(f"--method: there is no {method!r} - {nearest(method, METHODS)}")
    if weights is not None:
        check_weights(adapters, weights)
    if density is not None and (method == "sum" or not 0 < density <= 1):
        raise RunError(
            f"--density: {density} - give a share above 0, up to 1, with a --method that prunes "
            f"({', '.join(METHODS[1:])})"
        )
    if seed is not None and method not in DRAWING:
        raise RunError(
            f"--seed: {method} draws nothing by chance - leave it out, or use {DRAWING[0]}"
        )
    return Mix(
        adapters=tuple(adapters),
        weights=tuple(weights or [1.0] * len(adapters)),
        method=method,
        density=None if method == "sum" else HALF if density is None else density,
        seed=(seed or 0) if method in DRAWING else None,
        head_from=None if head_from is None else str(head_from),
    )


def check_weights(adapters: Sequence[str], weights: Sequence[float]) -> None:
    """Refuse weights that are not one for each adapter, or say nothing."""
    if len(weights) != len(adapters):
        raise RunError(
            f"--weights: {len(weights)} for {len(adapters)} adapters - give one for each, in their "
            "order, as 0.5,0.5"
        )
    for weight, adapter in zip(weights, adapters, strict=True):
        if weight == 0 or not abs(weight) < float("inf"):
            raise RunError(
                f"--weights: {weight} for {adapter} - leave the adapter out, or give a number"
            )


@dataclass(frozen=True)
class Mixture(Fold):
    """W + what the differences of several adapters come to."""

    name: str
    """Of the tensor, as the model calls it."""
    members: tuple[tuple[int, Fold], ...]
    """The adapters' numbers, and what each adds."""
    mix: Mix
    additive = True

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Whether elements compete for being kept."""
        return self.mix.method != "sum"

    @property
    def parts(self) -> tuple[Stored, ...]:
        """Those of all."""
        return tuple(chain.from_iterable(fold.parts for _, fold in self.members))

    def expects(self) -> str:
        """What each does."""
        return " and ".join(sorted({fold.expects() for _, fold in self.members}))

    def fits(self, shape: Shape) -> bool:
        """Whether all fit."""
        return all(fold.fits(shape) for _, fold in self.members)

    def ready(self, shape: Shape, sign: float = 1.0) -> Rows:
        """The rows with the mixed difference added; block by block where it is a sum."""
        if self.whole:
            return lambda _first, _last, rows: rows.add_(self.difference(rows), alpha=sign)
        added = [fold.ready(shape, sign * self.mix.weights[n]) for n, fold in self.members]

        def summed(first: int, last: int, rows: "Tensor") -> "Tensor":
            for add in added:
                rows = add(first, last, rows)
            return rows

        return summed

    def difference(self, weight: "Tensor") -> "Tensor":
        """What the adapters' whole differences to a weight of this shape come to."""
        import torch

        found = [
            fold.ready(tuple(weight.shape))(0, len(weight), torch.zeros_like(weight))
            for _, fold in self.members
        ]
        return mixed(self.mix, self.name, [n for n, _ in self.members], found)

    def is_nothing(self) -> bool:
        """Whether none adds anything."""
        return all(fold.is_nothing() for _, fold in self.members)


def mixtures(found: Sequence[Iterable[tuple[str, Fold]]], mix: Mix) -> list[tuple[str, Fold]]:
    """What becomes of each tensor, from what each adapter alone would make of which."""
    members: dict[str, list[tuple[int, Fold]]] = {}
    for number, folds in enumerate(found):
        for name, fold in folds:
            members.setdefault(name, []).append((number, fold))
    return [(name, Mixture(name, tuple(folds), mix)) for name, folds in members.items()]


def silent(mix: Mix, folds: Iterable[Fold]) -> list[str]:
    """The adapters that add nothing to any tensor."""
    heard = {
        number
        for fold in folds
        if isinstance(fold, Mixture)
        for number, member in fold.members
        if not member.is_nothing()
    }
    return [name for number, name in enumerate(mix.adapters) if number not in heard]


def mixed(mix: Mix, name: str, numbers: Iterable[int], differences: Sequence["Tensor"]) -> "Tensor":
    """What the `differences` to the tensor `name` come to, which the adapters of these numbers say.

    An adapter that does not act on the tensor has no vote, as in PEFT.
    """
    import torch
    from peft.utils import merge_utils

    weights = torch.tensor([mix.weights[number] for number in numbers])
    if mix.method == "sum":
        return merge_utils.task_arithmetic(list(differences), weights)
    combine: Any = getattr(merge_utils, mix.method)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # a seed for each tensor, so that neither their order nor the others matter
        drawn = hashlib.sha256(f"{mix.seed}:{name}".encode()).digest()
        torch.manual_seed(int.from_bytes(drawn[:7], "big"))
        warnings.filterwarnings("ignore", "The density 1.0 is greater", UserWarning)
        found: Tensor = combine(list(differences), weights, mix.density)
    return found
