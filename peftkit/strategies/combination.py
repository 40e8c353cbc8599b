"""Combinations: several strategies on one model, trained together and saved as one artifact."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationError, model_validator
from typing_extensions import Self

from peftkit.errors import Fault, RecipeError
from peftkit.registry import got, recipe_error
from peftkit.strategies.base import (
    ExportedModule,
    LRMultiplier,
    PeftStrategy,
    Strategy,
    TrainingHook,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from peftkit.tasks.base import Task


MAM = [
    {"kind": "prefix", "num_virtual_tokens": 16, "prefix_projection": True},
    {"kind": "adapter", "variant": "parallel", "reduction": 16, "scale": 2.0},
]
"""The mix-and-match adapter as its authors ran it on GLUE, but for two widths, which go by the
model's: their bottleneck kept 16 of 768 features, and the prefix's network was 800 wide."""


class Combination(Strategy):
    """The parts, one after another; what any of them trains is trained."""

    kind: Literal["combination"] = "combination"
    parts: list[SerializeAsAny[Strategy]] = Field(min_length=2)
    """Strategies, each a name or a mapping; at most one of them may be one of PEFT's."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mam": {"parts": MAM}}
    source: ClassVar[str] = "arXiv:2110.04366"

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        for part in self.parts:
            if part.trains_base or isinstance(part, Combination):
                raise ValueError(f"'{part.kind}' is no part of a combination - name it alone")
        native = [part.kind for part in self.parts if isinstance(part, PeftStrategy)]
        if len(native) > 1:
            raise ValueError(
                f"PEFT holds one method at a time, not {' and '.join(native)} - drop one"
            )
        return self

    @property
    def default_lr(self) -> float:  # type: ignore[override]
        """The lowest of the parts' own: what is too slow for one does not break another."""
        return min(part.default_lr for part in self.parts)

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        """Whether every part is."""
        return all(part.mergeable for part in self.parts)

    @property
    def packs(self) -> bool:  # type: ignore[override]
        """Whether every part does."""
        return all(part.packs for part in self.parts)

    @property
    def num_prompt_tokens(self) -> int:  # type: ignore[override]
        """All the parts' virtual tokens."""
        return sum(part.num_prompt_tokens for part in self.parts)

    def components(self) -> list[Strategy]:
        """The parts, PEFT's first: the others are attached to the model that it wraps."""
        return sorted(self.parts, key=lambda part: not isinstance(part, PeftStrategy))

    @classmethod
    def from_settings(cls, settings: dict[str, Any], path: str) -> Self:
        """Each part as the strategy that it is; the faults of all parts at once."""
        given = settings.get("parts")
        if not isinstance(given, list) or len(given) < 2:
            what = (
                f"should be a list of two strategies or more{got(given)} - name one alone by kind"
            )
            raise RecipeError("", [Fault(f"{path}.parts", what)])
        parts: list[Strategy] = []
        faults: list[Fault] = []
        for index, part in enumerate(given):
            try:
                parts.append(Strategy.parse(part, f"{path}.parts.{index}"))
            except RecipeError as error:
                faults += error.faults
        if faults:
            raise RecipeError("", faults)
        try:
            return cls.model_validate({**settings, "parts": parts})
        except ValidationError as error:
            raise recipe_error(error, cls, path) from None

    def check_quantization(self, quantized: str | None) -> str | None:
        """The first reason that a part has."""
        return next(filter(None, (part.check_quantization(quantized) for part in self.parts)), None)

    def incompatibilities(self, config: "PretrainedConfig", task: "Task") -> list[Fault]:
        """Those of all parts."""
        return [fault for part in self.parts for fault in part.incompatibilities(config, task)]

    def adapt(self, model: "PreTrainedModel", task: "Task") -> "nn.Module":
        """The model with every part attached, and all that any of them trains trainable."""
        adapted: nn.Module = model
        chosen: set[int] = set()
        for part in self.components():
            made = part.adapt(model, task)
            adapted = made if isinstance(part, PeftStrategy) else adapted
            chosen |= {id(p) for p in adapted.parameters() if p.requires_grad}
        for parameter in adapted.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        return adapted

    def prepare(self, model: "nn.Module", batches: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """Each part in turn."""
        for part in self.components():
            part.prepare(model, batches)

    def lr_multipliers(self, model: "nn.Module") -> dict[str, LRMultiplier]:
        """All the parts'."""
        return {
            name: multiplier
            for part in self.parts
            for name, multiplier in part.lr_multipliers(model).items()
        }

    def training_hook(self, model: "nn.Module", steps: int) -> TrainingHook | None:
        """That of PEFT's part; no other strategy has one."""
        return self.components()[0].training_hook(model, steps)

    def save(self, model: "nn.Module", folder: Path) -> None:
        """What was trained, and PEFT's configuration of its part, which merging reads."""
        super().save(model, folder)
        if isinstance(self.components()[0], PeftStrategy):
            adapted: Any = model
            adapted.peft_config["default"].save_pretrained(str(folder))

    def exported_modules(self, model: "nn.Module") -> list[ExportedModule]:
        """All the parts'."""
        from peftkit.models.architectures import unwrap_model

        base = unwrap_model(model)
        return [
            module
            for part in self.components()
            for module in part.exported_modules(model if isinstance(part, PeftStrategy) else base)
        ]
