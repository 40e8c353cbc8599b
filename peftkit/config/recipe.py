"""A recipe: the model, data, task, strategy, quantization and training of one run."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
)
from typing_extensions import Self

from peftkit.config.composition import Composition, Override, compose, kinds_first, parse_overrides
from peftkit.config.earlier_names import earlier_names
from peftkit.config.training import WITHOUT_EFFECT, Training
from peftkit.data.base import ADDED_SETTINGS, Data
from peftkit.data.splits import Splits
from peftkit.errors import Fault, RecipeError, nearest_divisors
from peftkit.hub.source import Source
from peftkit.models.quantization import Quantization, Unquantized
from peftkit.registry import Component, Settings, import_plugin, parse_settings, recipe_error
from peftkit.strategies.base import Strategy
from peftkit.tasks.base import Task


class Recipe(Settings):
    """One run's settings: frozen, complete and validated before torch is imported."""

    name: str
    """Name of the run, which names its directory."""
    description: str | None = None
    """A sentence for `peftkit list recipes`."""
    model: str = Field(min_length=1)
    """Base model: a local directory, or a name on the Hub (name@revision pins it)."""
    data: SerializeAsAny[Data]
    """Data set."""
    task: SerializeAsAny[Task]
    """Task: what the model is trained to answer."""
    strategy: SerializeAsAny[Strategy]
    """Fine-tuning strategy: which weights are trained."""
    quantize: SerializeAsAny[Quantization] = Unquantized()
    """Quantization of the base model."""
    training: Training = Training()
    """How the chosen weights are trained."""
    plugins: list[str] = Field(default_factory=list)
    """Modules to import first, which declare further strategies, tasks or data."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w .+-]*", name):
            raise ValueError("should be letters, digits, _ and -, as a directory's name")
        return name

    @classmethod
    def load(cls, name: str, *overrides: str, folder: Path | None = None, **settings: Any) -> Self:
        """The recipe `name` with `key=value` overrides, then keyword settings, on top.

        Two underscores in a keyword stand for a dot (`training__seed=1`). Raises `RecipeError`
        with all faults at once.
        """
        parsed = parse_overrides(overrides, "override")
        return cls.of(compose(name, [*parsed, *keywords(settings)], folder))

    @classmethod
    def of(cls, composition: Composition) -> Self:
        """The recipe described by `composition`; faults name where each value was set."""
        settings = {"name": composition.name, **composition.settings}
        if faults := broken_plugins(settings.get("plugins")):
            raise cannot_run(composition, faults)  # only these: what they declare would be missing
        parts, faults = parsed_parts(settings)
        rest = {key: value for key, value in settings.items() if key not in PARTS}
        try:
            recipe = cls.model_validate({**rest, **parts}, strict=True)
        except ValidationError as error:
            faults += recipe_error(error, cls, "").faults
        if not faults:
            faults = conflicts(recipe)
        if faults:
            if (again := composition.respelled(faults)) is not None:
                return cls.of(again)
            raise cannot_run(composition, faults)
        return recipe

    def but(self, **changes: Any) -> Self:
        """A copy with `changes` (`strategy="full"`, `training__seed=1`)."""
        composition = Composition(self.name, self.settings())
        for override in kinds_first(keywords(changes)):
            composition.set(*override)
        return type(self).of(composition)

    def settings(self) -> dict[str, Any]:
        """All settings except the name as plain data, as a recipe file has them."""
        return {key: value for key, value in self.to_dict().items() if key != "name"}

    def digest(self, model: Source, data: Source) -> str:
        """SHA-256, as 64 hex digits, of all settings that can change the result.

        Paths and machines are not part of it.
        """
        settings = self.model_dump(mode="json", exclude={"name", "description"})
        settings["model"], settings["data_identity"] = model.identity, data.identity
        for key in ("kind", "path", "name", "fallback", "revision"):
            settings["data"].pop(key, None)
        # settings that were added later count only when they are set, so that older runs keep their
        # digest; a named subset picks other rows of the same files
        added_later = {"data": ("subset", *ADDED_SETTINGS), "task": self.task.added_settings}
        for part, keys in ((settings[name], keys) for name, keys in added_later.items()):
            for *above, key in (name.split(".") for name in keys):
                inner = part[above[0]] if above else part
                if inner and inner.get(key) is None:
                    inner.pop(key, None)
        for key in WITHOUT_EFFECT:
            settings["training"].pop(key)
        settings = earlier_names(settings)  # so that runs of earlier versions are found
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def splits(self, source: Source) -> Splits:
        """The splits of `source`, with the columns that the task reads."""
        return self.data.load(source, self.task.roles, self.task.inputs, self.task.used_roles)

    def with_fitted_state(self, values: Mapping[str, Any]) -> Self:
        """The recipe with the fitted state of a run in its task; its digest stays the same."""
        return self.model_copy(update={"task": self.task.with_fitted_state(values)})

    def lr(self) -> float:
        """The peak learning rate."""
        return self.strategy.default_lr if self.training.lr == "auto" else self.training.lr


PARTS: dict[str, type[Settings]] = {
    "data": Data,
    "task": Task,
    "strategy": Strategy,
    "quantize": Quantization,
    "training": Training,
}


def keywords(settings: dict[str, Any]) -> list[Override]:
    """Keyword arguments as overrides."""
    return [
        Override(key.replace("__", "."), v.to_dict() if isinstance(v, Settings) else v, "Python")
        for key, v in settings.items()
    ]


def broken_plugins(modules: object) -> list[Fault]:
    """Import the plug-ins of a recipe; returns a fault for each that fails."""
    faults: list[Fault] = []
    for module in modules if isinstance(modules, list) else []:
        try:
            import_plugin(str(module), "plugins")
        except RecipeError as error:
            faults += error.faults
    return faults


def parsed_parts(settings: dict[str, Any]) -> tuple[dict[str, Settings], list[Fault]]:
    """The parts of a recipe, with an empty one for each that is invalid, and the faults."""
    parts: dict[str, Settings] = {}
    faults: list[Fault] = []
    for key, kind in PARTS.items():
        if key not in settings:
            continue
        try:
            parts[key] = part(kind, settings[key], key)
        except RecipeError as error:
            parts[key] = kind.model_construct()
            faults += error.faults
    return parts, faults


def part(kind: type[Settings], value: Any, path: str) -> Settings:
    """One part of a recipe, parsed from plain data."""
    if issubclass(kind, Component):
        return kind.parse(value, path)
    return parse_settings(kind, value if value is not None else {}, path)


def conflicts(recipe: Recipe) -> list[Fault]:
    """Faults of valid parts that do not fit together."""
    faults: list[Fault] = []
    if reason := recipe.strategy.check_quantization(recipe.quantize.held):
        faults.append(Fault("recipe", reason))
    training = recipe.training
    if recipe.quantize.bits and training.trainer.get("torch_compile"):
        what = (
            f"'quantize: {recipe.quantize.kind}' cannot be compiled - use quantize=none or drop it"
        )
        faults.append(Fault("training.trainer.torch_compile", what))
    if training.micro_batch_size != "auto" and training.batch_size % training.micro_batch_size:
        near = nearest_divisors(training.batch_size, training.micro_batch_size)
        what = (
            f"{training.micro_batch_size} does not divide training.batch_size={training.batch_size}"
            f" - the nearest that do are {near}"
        )
        faults.append(Fault("training.micro_batch_size", what))
    faults += what_the_task_lacks(recipe)
    if training.patience and training.evaluate == "never":
        what = "early stopping needs evaluations - set training.evaluate=epoch"
        faults.append(Fault("training.patience", what))
    return faults


def what_the_task_lacks(recipe: Recipe) -> list[Fault]:
    """Faults of settings that the task does not use."""
    data, task = recipe.data, recipe.task
    wanted = [
        ("data.few_shot", data.few_shot, task.has_classes),
        ("data.balance", data.balance, task.has_classes),
        ("data.augment", data.augment, task.allows_word_augmentation),
        (
            "training.label_smoothing",
            recipe.training.label_smoothing,
            task.supports_label_smoothing,
        ),
    ]
    what = f"has no meaning for 'task: {task.kind}' - remove it"
    return [Fault(where, what) for where, value, is_used in wanted if value and not is_used]


def cannot_run(composition: Composition, faults: Iterable[Fault]) -> RecipeError:
    """One error with all faults, each with the place where its value was set."""

    def placed(fault: Fault) -> Fault:
        source = composition.source_of(fault.where)
        return Fault(f"{fault.where} ({source})" if source else fault.where, fault.what)

    return RecipeError(f"recipe {composition.name!r} cannot run:", sorted(set(map(placed, faults))))
