"""The recipe: a frozen value that says what to train and how little of it."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    field_validator,
)
from typing_extensions import Self

from peftkit.config.composition import Composition, Override, compose, kinds_first, parse_overrides
from peftkit.config.earlier_names import earlier_names
from peftkit.data.base import LATER, Data
from peftkit.data.splits import Splits
from peftkit.errors import Fault, RecipeError, nearest, nearest_divisors
from peftkit.hub.source import Source
from peftkit.models.quantization import Quantization, Unquantized
from peftkit.registry import Component, Settings, import_plugin, parse_settings, recipe_error
from peftkit.strategies.base import Strategy
from peftkit.tasks.base import Task

TRACKERS = {name: name for name in ("tensorboard", "wandb", "mlflow", "trackio")}
WITHOUT_EFFECT = ("save_steps", "threads", "report_to", "proof")
"""Training settings that leave the result as it is, and so the digest too."""


class Training(Settings):
    """How the chosen weights are trained."""

    epochs: PositiveFloat = 3
    """Passes over the train split."""
    steps: PositiveInt | None = None
    """Optimizer steps instead of epochs."""
    batch_size: PositiveInt = 32
    """Examples an optimizer step, over all ranks and micro-batches."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Examples a forward pass on one rank; auto: as many as fit in memory, at most `max_tokens`."""
    max_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens a forward pass that `micro_batch_size: auto` aims at, the longest rows assumed; auto:
    2,048 on a CPU, where more is no faster and takes more memory, 16,384 on a GPU."""
    lr: PositiveFloat | Literal["auto"] = "auto"
    """Learning rate at its highest; auto: the strategy's own default."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "exponential", "step"] = "linear"
    """Learning rate after the warm-up; exponential ends at 1 %, step halves it five times."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay, not on biases and norms."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label's probability spread over all labels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """The model's dropout; auto: its own where the base is trained, 0 where it is frozen."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type in which weights rest and products are computed; auto: the faster, as measured."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    order: Literal["length_grouped", "random"] = "length_grouped"
    """Order of the examples: like lengths together, or not."""
    packing: Literal["auto", "on", "off"] = "auto"
    """on: no padding where the architecture is proven equal to padded; auto: where that is also
    measured faster on some of the run's batches; off: always pad."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seeds the new weights, the order and dropout."""
    evaluate: PositiveInt | Literal["epoch", "never"] = "epoch"
    """Score the validation split after every so many steps, or every epoch."""
    patience: PositiveInt | None = None
    """Stop after so many evaluations without a better score."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with: the best on the validation split, or the last."""
    save_steps: PositiveInt | Literal["epoch"] = "epoch"
    """Save a checkpoint after every so many steps, or every epoch."""
    threads: PositiveInt | Literal["auto"] = "auto"
    """CPU threads of a rank; auto: its share of the cores (a launcher's one thread is undone)."""
    proof: Literal["full", "run"] = "full"
    """full: the artifact is also loaded in a fresh process and must give the same logits."""
    report_to: list[str] = Field(default_factory=list)
    """Trackers to log to: tensorboard, wandb, mlflow, trackio."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `transformers.TrainingArguments`, passed on as they are."""

    @field_validator("report_to")
    @classmethod
    def _trackers_are_known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in TRACKERS:
                raise ValueError(f"no tracker is called {name!r} - {nearest(name, TRACKERS)}")
            if importlib.util.find_spec(TRACKERS[name]) is None:
                raise ValueError(f"the tracker {name!r} is not installed - pip install {name}")
        return names


class Recipe(Settings):
    """What to train and how little of it; complete and checked before torch is imported."""

    name: str
    """What the run's folder is called."""
    description: str | None = None
    """A sentence for `peftkit list recipes`."""
    model: str = Field(min_length=1)
    """Base model: a folder, or a name on the hub (name@revision pins it)."""
    data: SerializeAsAny[Data]
    """Where the examples come from."""
    task: SerializeAsAny[Task]
    """What the model is asked."""
    strategy: SerializeAsAny[Strategy]
    """Which weights move."""
    quantize: SerializeAsAny[Quantization] = Unquantized()
    """How the base's weights rest in memory."""
    training: Training = Training()
    """How the chosen weights are trained."""
    plugins: list[str] = Field(default_factory=list)
    """Modules that declare further strategies, tasks or data, imported first."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w .+-]*", name):
            raise ValueError("should be letters, digits, _ and -, since it names the run's folder")
        return name

    @classmethod
    def load(cls, name: str, *overrides: str, folder: Path | None = None, **settings: Any) -> Self:
        """The recipe `name` with `key=value` overrides, then keyword settings, on top.

        A keyword reaches below with two underscores (`training__seed=1`). Raises `RecipeError`
        with all faults at once.
        """
        parsed = parse_overrides(overrides, "override")
        return cls.of(compose(name, [*parsed, *keywords(settings)], folder))

    @classmethod
    def of(cls, composition: Composition) -> Self:
        """The recipe that a composition describes; faults name where each value was set."""
        settings = {"name": composition.name, **composition.settings}
        if faults := broken_plugins(settings.get("plugins")):
            raise cannot_run(composition, faults)  # alone: what they declare would be missing
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
        """Another recipe, the same but for `changes` (`strategy="full"`, `training__seed=1`)."""
        composition = Composition(self.name, self.settings())
        for override in kinds_first(keywords(changes)):
            composition.set(*override)
        return type(self).of(composition)

    def settings(self) -> dict[str, Any]:
        """All settings but the name as plain data: a recipe file that runs again."""
        return {key: value for key, value in self.to_dict().items() if key != "name"}

    def digest(self, model: Source, data: Source) -> str:
        """64 hex digits that name all that can change the result, and no path or machine."""
        said = self.model_dump(mode="json", exclude={"name", "description"})
        said["model"], said["data_identity"] = model.identity, data.identity
        for key in ("kind", "path", "name", "fallback", "revision"):
            said["data"].pop(key, None)
        # without settings of later times a run keeps the name it had before there were any; a named
        # subset picks other rows of the same files
        for part, keys in ((said["data"], ("subset", *LATER)), (said["task"], self.task.later)):
            for *above, key in (name.split(".") for name in keys):
                inner = part[above[0]] if above else part
                if inner and inner.get(key) is None:
                    inner.pop(key, None)
        for key in WITHOUT_EFFECT:
            said["training"].pop(key)
        said = earlier_names(said)  # so that runs of earlier versions are found
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def splits(self, source: Source) -> Splits:
        """The rows of `source`, its columns as the task reads them."""
        return self.data.load(source, self.task.roles, self.task.inputs, self.task.used_roles)

    def carrying(self, tuned: Mapping[str, Any]) -> Self:
        """The recipe, whose task has what a run learned beside the weights; its digest stays."""
        return self.model_copy(update={"task": self.task.carrying(tuned)})

    def lr(self) -> float:
        """The learning rate at its highest."""
        return self.strategy.default_lr if self.training.lr == "auto" else self.training.lr


PARTS: dict[str, type[Settings]] = {
    "data": Data,
    "task": Task,
    "strategy": Strategy,
    "quantize": Quantization,
    "training": Training,
}


def keywords(settings: dict[str, Any]) -> list[Override]:
    """Keyword arguments as overrides by plain values."""
    return [
        Override(key.replace("__", "."), v.to_dict() if isinstance(v, Settings) else v, "Python")
        for key, v in settings.items()
    ]


def broken_plugins(modules: object) -> list[Fault]:
    """Import the plug-ins of a recipe; a fault for each that fails."""
    faults: list[Fault] = []
    for module in modules if isinstance(modules, list) else []:
        try:
            import_plugin(str(module), "plugins")
        except RecipeError as error:
            faults += error.faults
    return faults


def parsed_parts(settings: dict[str, Any]) -> tuple[dict[str, Settings], list[Fault]]:
    """The parts of a recipe that are there, stand-ins for those at fault, and the faults."""
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
    """One part of a recipe from its plain data."""
    if issubclass(kind, Component):
        return kind.parse(value, path)
    return parse_settings(kind, value if value is not None else {}, path)


def conflicts(recipe: Recipe) -> list[Fault]:
    """What the parts of a recipe, each right by itself, forbid together."""
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
    """Settings that mean nothing for the task."""
    data, task = recipe.data, recipe.task
    wanted = [
        ("data.few_shot", data.few_shot, task.has_classes),
        ("data.balance", data.balance, task.has_classes),
        ("data.augment", data.augment, task.changes_words),
        ("training.label_smoothing", recipe.training.label_smoothing, task.smooths),
    ]
    what = f"means nothing for 'task: {task.kind}' - remove it"
    return [Fault(where, what) for where, said, meant in wanted if said and not meant]


def cannot_run(composition: Composition, faults: Iterable[Fault]) -> RecipeError:
    """All faults in one error, each with the source of its value; top-level names get theirs."""

    def placed(fault: Fault) -> Fault:
        source = composition.source_of(fault.where)
        return Fault(f"{fault.where} ({source})" if source else fault.where, fault.what)

    return RecipeError(f"recipe {composition.name!r} cannot run:", sorted(set(map(placed, faults))))
