"""The tensors of a merged checkpoint: what each is made of, and in which file it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftkit.merging.checkpoint.tensors import Stored
from peftkit.merging.deltas.low_rank import Fold


@dataclass(frozen=True)
class Output:
    """A tensor of the merged checkpoint."""

    name: str
    source: Stored
    """What it is made of: the base's own, or what was trained in its place."""
    dtype: str
    folds: tuple[Fold, ...] = ()
    """What becomes of it, in this order."""
    base: Stored | None = None
    """The base's own tensor, where it has one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As its source's."""
        return self.source.shape

    @property
    def computed(self) -> bool:
        """Whether more is done than copying bytes."""
        return bool(self.folds) or self.source.dtype != self.dtype

    @property
    def touched(self) -> bool:
        """Whether the adapter has a word in it."""
        return bool(self.folds) or self.base is not self.source


@dataclass(frozen=True)
class Plan:
    """What the merge will write."""

    shards: Mapping[str, tuple[Output, ...]]
    """The files of weights, each with its tensors in their order."""
    config: Mapping[str, Any]
    """What changes in the configuration."""
    dropped: tuple[str, ...]
    """The base's tensors that the merged model does not have: the head of its pretraining."""

    @property
    def outputs(self) -> list[Output]:
        """All tensors."""
        return [output for outputs in self.shards.values() for output in outputs]
