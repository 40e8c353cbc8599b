"""`Mix`: how the task vectors of several adapters are combined, tensor by tensor."""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from peftkit.deltas.base import RowUpdate, Shape, WeightDelta
from peftkit.errors import RunError, nearest
from peftkit.registry import Settings
from peftkit.storage.safetensors_files import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["sum", "magnitude_prune", "ties", "dare_linear", "dare_ties"]
METHODS: tuple[str, ...] = get_args(Method)
RANDOM_METHODS = ("dare_linear", "dare_ties")
"""The methods that drop elements at random."""
DEFAULT_DENSITY = 0.5


class Mix(Settings):
    """How several adapters are combined into one.

    A tensor's task vectors are the adapters' full differences to it, not their factors: the product
    of pruned factors is not a pruned difference. 'sum': their weighted sum (task arithmetic,
    arXiv:2212.04089); 'magnitude_prune': the sum of their largest elements; 'ties':
    arXiv:2306.01708; 'dare_linear' and 'dare_ties': arXiv:2311.03099. All but the sum are PEFT's
    (`peft.utils.merge_utils`), which prunes tensor by tensor.
    """

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    """The factor of each adapter's difference."""
    method: Method = "sum"
    density: float | None = None
    """The share of elements that is kept; null for the sum."""
    seed: int | None = None
    """The seed of what is dropped at random; null if nothing is."""
    head_from: str | None = None
    """The adapter whose head the merged model has; null if there is no choice."""


def make_mix(
    folders: Sequence[Path],
    weights: Sequence[float] | None,
    method: str | None,
    density: float | None,
    seed: int | None,
    head_from: Path | None,
) -> Mix | None:
    """The mix of the adapters in `folders`; None for a single adapter that is merged as it is.

    Raises `RunError` for settings that contradict each other.
    """
    adapters = [str(folder) for folder in folders]
    settings = (weights, method, density, seed, head_from)
    if len(adapters) == 1 and all(value is None for value in settings):
        return None
    method = method or "sum"
    if method not in METHODS:
        raise RunError(f"--method: no method {method!r} - {nearest(method, METHODS)}")
    if weights is not None:
        check_weights(adapters, weights)
    if density is not None and (method == "sum" or not 0 < density <= 1):
        raise RunError(
            f"--density: {density} - use a number above 0, up to 1, with a --method that prunes "
            f"({', '.join(METHODS[1:])})"
        )
    if seed is not None and method not in RANDOM_METHODS:
        raise RunError(f"--seed: {method} is not random - drop it, or use {RANDOM_METHODS[0]}")
    return Mix(
        adapters=tuple(adapters),
        weights=tuple(weights or [1.0] * len(adapters)),
        method=method,
        density=None if method == "sum" else DEFAULT_DENSITY if density is None else density,
        seed=(seed or 0) if method in RANDOM_METHODS else None,
        head_from=None if head_from is None else str(head_from),
    )


def check_weights(adapters: Sequence[str], weights: Sequence[float]) -> None:
    """Raise `RunError` unless there is a finite weight other than 0 for each adapter."""
    if len(weights) != len(adapters):
        raise RunError(
            f"--weights: {len(weights)} for {len(adapters)} adapters - give one for each, in "
            "order, as in 0.5,0.5"
        )
    for weight, adapter in zip(weights, adapters, strict=True):
        if weight == 0 or not abs(weight) < float("inf"):
            raise RunError(
                f"--weights: {weight} for {adapter} - leave the adapter out, or use a number"
            )


@dataclass(frozen=True)
class CombinedDelta(WeightDelta):
    """W + the combined differences of several adapters."""

    name: str
    """The tensor's name in the model."""
    members: tuple[tuple[int, WeightDelta], ...]
    """The adapters' numbers, and their deltas."""
    mix: Mix
    additive = True

    @property
    def needs_all_rows(self) -> bool:  # type: ignore[override]
        """Whether the elements to keep are chosen from the whole tensor."""
        return self.mix.method != "sum"

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Those of all members."""
        return tuple(chain.from_iterable(delta.tensors for _, delta in self.members))

    @property
    def shared_tensors(self) -> tuple[StoredTensor, ...]:
        """Those of all members."""
        return tuple(chain.from_iterable(delta.shared_tensors for _, delta in self.members))

    @property
    def expected_shape(self) -> str:
        """What each member expects."""
        return " and ".join(sorted({delta.expected_shape for _, delta in self.members}))

    def fits(self, shape: Shape) -> bool:
        """Whether all members fit."""
        return all(delta.fits(shape) for _, delta in self.members)

    def prepare(self, shape: Shape, sign: float = 1.0) -> RowUpdate:
        """Adds the combined difference; block by block if it is a sum."""
        if self.needs_all_rows:
            return lambda _first, _end, rows: rows.add_(self.difference(rows), alpha=sign)
        updates = [delta.prepare(shape, sign * self.mix.weights[n]) for n, delta in self.members]

        def add(first: int, end: int, rows: "Tensor") -> "Tensor":
            for update in updates:
                rows = update(first, end, rows)
            return rows

        return add

    def difference(self, weight: "Tensor") -> "Tensor":
        """The combined difference for a weight of this shape."""
        import torch

        differences = [
            delta.prepare(tuple(weight.shape))(0, len(weight), torch.zeros_like(weight))
            for _, delta in self.members
        ]
        return combine(self.mix, self.name, [number for number, _ in self.members], differences)

    def is_zero(self) -> bool:
        """Whether every member is zero."""
        return all(delta.is_zero() for _, delta in self.members)


def combine_deltas(
    by_adapter: Sequence[Iterable[tuple[str, WeightDelta]]], mix: Mix
) -> list[tuple[str, WeightDelta]]:
    """One delta for each tensor, from the named deltas of each adapter."""
    members: dict[str, list[tuple[int, WeightDelta]]] = {}
    for number, deltas in enumerate(by_adapter):
        for name, delta in deltas:
            members.setdefault(name, []).append((number, delta))
    return [(name, CombinedDelta(name, tuple(deltas), mix)) for name, deltas in members.items()]


def zero_adapters(mix: Mix, deltas: Iterable[WeightDelta]) -> list[str]:
    """The adapters that change no tensor."""
    effective = {
        number
        for delta in deltas
        if isinstance(delta, CombinedDelta)
        for number, member in delta.members
        if not member.is_zero()
    }
    return [name for number, name in enumerate(mix.adapters) if number not in effective]


def combine(
    mix: Mix, name: str, numbers: Iterable[int], differences: Sequence["Tensor"]
) -> "Tensor":
    """The combined `differences` to the tensor `name`, of the adapters with these numbers.

    As in PEFT, an adapter that does not change the tensor has no vote.
    """
    import torch
    from peft.utils import merge_utils

    weights = torch.tensor([mix.weights[number] for number in numbers])
    if mix.method == "sum":
        return merge_utils.task_arithmetic(list(differences), weights)
    function: Any = getattr(merge_utils, mix.method)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # a seed for each tensor, so that neither their order nor the other tensors matter
        digest = hashlib.sha256(f"{mix.seed}:{name}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        warnings.filterwarnings("ignore", "The density 1.0 is greater", UserWarning)
        combined: Tensor = function(list(differences), weights, mix.density)
    return combined
