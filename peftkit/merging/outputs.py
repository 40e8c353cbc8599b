"""`MergePlan`: the tensors of a merged checkpoint, how each is computed, and its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftkit.deltas.base import Shape, WeightDelta
from peftkit.storage.safetensors_files import StoredTensor


@dataclass(frozen=True)
class Output:
    """A tensor of the merged checkpoint."""

    name: str
    source: StoredTensor
    """The base's own tensor, or the trained one that replaces it."""
    dtype: str
    deltas: tuple[WeightDelta, ...] = ()
    """What changes the source, in this order."""
    base: StoredTensor | None = None
    """The base's own tensor, if it has one."""

    @property
    def shape(self) -> Shape:
        """The source's shape."""
        return self.source.shape

    @property
    def is_computed(self) -> bool:
        """Whether it needs more than copying bytes."""
        return bool(self.deltas) or self.source.dtype != self.dtype

    @property
    def is_touched(self) -> bool:
        """Whether the adapter changes or replaces it."""
        return bool(self.deltas) or self.base is not self.source


@dataclass(frozen=True)
class MergePlan:
    """What a merge writes."""

    shards: Mapping[str, tuple[Output, ...]]
    """The files of weights, each with its tensors in order."""
    config: Mapping[str, Any]
    """Changes to the model's configuration."""
    dropped: tuple[str, ...]
    """The base's tensors that the merged model does not have: a pretraining head."""

    @property
    def outputs(self) -> list[Output]:
        """All tensors."""
        return [output for outputs in self.shards.values() for output in outputs]
