"""Frozen layers: only the head, some blocks, the embeddings or what patterns name is trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from peftkit.errors import Fault, RecipeError
from peftkit.models.architectures import (
    blocks_of,
    constant_parameters,
    head_names,
    parameter_depths,
    unwrap_model,
)
from peftkit.models.parameters import base_parameters, match_parameters
from peftkit.strategies.base import LRMultiplier, Strategy, slower_below, train_head

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from peftkit.tasks.base import Task


class Frozen(Strategy):
    """The head is trained, and of the base only what is named (Howard and Ruder 2018)."""

    kind: Literal["frozen"] = "frozen"
    last: NonNegativeInt = 2
    """Number of last blocks to train, with all layers after them; 0 is a linear probe."""
    first: NonNegativeInt = 0
    """Number of first blocks to train."""
    embeddings: bool = False
    """Whether the embeddings are trained."""
    patterns: list[str] = Field(default_factory=list)
    """Further parameters to train, by name with * and ?, as in '*.LayerNorm.*'."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of a block over that of the block above it (ULMFiT, arXiv:1801.06146)."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"linear_probe": {"last": 0}}
    source: ClassVar[str] = "arXiv:1801.06146"

    @property
    def default_lr(self) -> float:  # type: ignore[override]
        """2e-4 where pretrained layers move; a head alone starts from nothing and learns faster."""
        return 2e-4 if self.trains_layers else 5e-2

    @property
    def trains_layers(self) -> bool:
        """Whether anything but the head is trained."""
        return bool(self.last or self.first or self.embeddings or self.patterns)

    def check_quantization(self, quantized: str | None) -> str | None:
        """A quantized base can carry a linear probe and no more."""
        if quantized and self.trains_layers:
            return (
                f"'strategy: frozen' would train layers of the base, but 'quantize: {quantized}' "
                "freezes them - use strategy.last=0 and nothing else (a linear probe), "
                "strategy=layernorm, strategy=lora or quantize=none"
            )
        return None

    def incompatibilities(self, config: "PretrainedConfig", task: "Task") -> list[Fault]:
        """A task that reads the base's own output layer leaves a linear probe nothing to train."""
        if self.trains_layers or task.trains_head:
            return []
        what = f"trains a new head and nothing else, but 'task: {task.kind}' has none"
        return [Fault("strategy", f"{what} - use strategy.last=1 or strategy=lora")]

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The model with the head and all that is named trainable."""
        self._check_blocks(len(blocks_of(model)))
        model.requires_grad_(False)
        for parameter in self._named(model):
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        train_head(model, task)
        self._check_rest(model)
        return model

    def lr_multipliers(self, model: "nn.Module") -> dict[str, LRMultiplier]:
        """Slower the further from the head, of what is named here."""
        if self.layer_decay == 1:
            return {}
        base = unwrap_model(model)  # the patterns name what PEFT has wrapped
        named = {id(parameter) for parameter in self._named(base)}
        own = {name for name, parameter in model.named_parameters() if id(parameter) in named}
        return {n: p for n, p in slower_below(model, self.layer_decay).items() if n in own}

    def _named(self, model: "nn.Module") -> list["nn.Parameter"]:
        """The base's parameters that the settings name."""
        base = unwrap_model(model)
        constants = {id(base.get_parameter(name)) for name in constant_parameters(base)}
        parameters = {n: p for n, p in base_parameters(model).items() if id(p) not in constants}
        by_pattern = match_parameters(self.patterns, list(parameters), "strategy.patterns")
        depths = {
            id(p): depth
            for (_, p), depth in zip(
                model.named_parameters(), parameter_depths(model).values(), strict=True
            )
        }
        count = len(blocks_of(model))
        return [
            p for n, p in parameters.items() if n in by_pattern or self._at(depths[id(p)], count)
        ]

    def _at(self, depth: int, count: int) -> bool:
        """Whether parameters at `depth` in a model of `count` blocks are trained."""
        if depth > count:
            return self.embeddings
        return bool(self.last and depth <= self.last) or depth > max(0, count - self.first)

    def _check_blocks(self, count: int) -> None:
        """Raise `RecipeError` for more blocks than there are, and for blocks counted twice."""
        faults = [
            Fault(
                f"strategy.{setting}",
                f"the model has {count} blocks (got {requested}) - use at most that many",
            )
            for setting, requested in (("last", self.last), ("first", self.first))
            if requested > count
        ]
        if not faults and self.first + self.last > count:
            what = (
                f"with strategy.last={self.last} it names a block twice, for the model has {count} "
                f"(got {self.first}) - use at most {count - self.last}, or strategy=full"
            )
            faults.append(Fault("strategy.first", what))
        if faults:
            raise RecipeError("the strategy does not fit the model:", faults)

    def _check_rest(self, model: "PreTrainedModel") -> None:
        """Raise `RecipeError` if every weight is trained."""
        heads = tuple(f"{head}." for head in head_names(model))
        own = base_parameters(model)
        constants = constant_parameters(model)
        if self.trains_layers and all(
            p.requires_grad
            for n, p in own.items()
            if not n.startswith(heads) and n not in constants
        ):
            what = "every weight is trained and none is frozen - use strategy=full, or name fewer"
            raise RecipeError("the strategy does not fit the model:", [Fault("strategy", what)])
