"""Frozen layers: only the head, the last blocks, or what patterns name is trained."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from peftkit.architectures import blocks_of
from peftkit.errors import Fault, RecipeError
from peftkit.strategies import Strategy, train_head

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.tasks import Task


class Frozen(Strategy):
    """The head is trained, and of the base only what is named (Howard and Ruder 2018)."""

    kind: Literal["frozen"] = "frozen"
    last: NonNegativeInt = 2
    """Blocks to train, from the head down, with all that stands above; 0 is a linear probe."""
    patterns: list[str] = Field(default_factory=list)
    """Further parameters to train, by name with * and ?, as in '*.LayerNorm.*'."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"linear_probe": {"last": 0}}
    default_lr: ClassVar[float] = 2e-4
    source: ClassVar[str] = "arXiv:1801.06146"

    @property
    def trains_layers(self) -> bool:
        """Whether anything but the head is trained."""
        return bool(self.last or self.patterns)

    def refuses(self, quantized: str | None) -> str | None:
        """A quantised base can carry a linear probe and no more."""
        if quantized and self.trains_layers:
            return (
                f"'strategy: frozen' would train layers of the base, but 'quantize: {quantized}' "
                "freezes them - use strategy.last=0 without patterns (a linear probe), "
                "strategy=lora or quantize=none"
            )
        return None

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The model with the head, the last blocks and what the patterns name trainable."""
        model.requires_grad_(False)
        blocks = blocks_of(model)
        if self.last > len(blocks):
            what = f"the model has {len(blocks)} blocks (got {self.last}) - use at most that many"
            raise RecipeError(
                "the strategy does not fit the model:", [Fault("strategy.last", what)]
            )
        wanted = set(self._named(model)) | set(self._above(model, [n for n, _ in blocks]))
        for name, parameter in model.named_parameters():
            if name in wanted and parameter.is_floating_point():
                parameter.requires_grad_(True)
        train_head(model, task)
        return model

    def _above(self, model: "PreTrainedModel", blocks: list[str]) -> list[str]:
        """Parameters of the last blocks and of what comes after them (pooler, last norm)."""
        if not self.last:
            return []
        names = [name for name, _ in model.named_parameters()]
        top = max(i for i, name in enumerate(names) if name.startswith(f"{blocks[-1]}."))
        chosen = tuple(f"{block}." for block in blocks[-self.last :])
        return [n for i, n in enumerate(names) if n.startswith(chosen) or i > top]

    def _named(self, model: "PreTrainedModel") -> list[str]:
        """Parameters that a pattern names; a pattern without any is an error."""
        names = [name for name, _ in model.named_parameters()]
        hits = {p: [n for n in names if fnmatchcase(n, p)] for p in self.patterns}
        empty = [pattern for pattern, found in hits.items() if not found]
        if empty:
            sample = ", ".join(names[:3] + names[-2:])
            faults = [
                Fault("strategy.patterns", f"{p!r} names no parameter - they look like {sample}")
                for p in empty
            ]
            raise RecipeError("the strategy does not fit the model:", faults)
        return [name for found in hits.values() for name in found]
