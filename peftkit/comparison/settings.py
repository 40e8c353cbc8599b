"""The settings of a comparison: a recipe, the strategies to compare, seeds and a tuning budget."""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from peftkit.config.composition import Composition, compose, kinds_first, parse_overrides, read_yaml
from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, RecipeError, nearest
from peftkit.models.quantization import Quantization
from peftkit.registry import Settings, parse_settings

ALWAYS = ("full", "linear_probe")
"""Strategies that are added to every comparison: the upper and the lower end of what to train."""

EXAMPLE = "benchmarks/imdb.yaml"
Entry = str | dict[str, Any] | list[Any]


class Budget(Settings):
    """The learning-rate search of each strategy, the same for all of them."""

    trials: NonNegativeInt = 3
    """Learning rates to try per strategy, its default first; 0: every strategy uses its default."""
    rows: PositiveInt | None = None
    """Training rows of a trial; null: all rows."""
    factor: float = Field(default=3.0, gt=1)
    """Learning rates are the default times 1, `factor`, 1/`factor`, `factor`^2, ..."""
    seed: NonNegativeInt = 1000
    """Seed of the trials; should differ from the seeds of the runs."""


class Comparison(Settings):
    """The settings of a comparison file."""

    description: str | None = None
    """One sentence about the comparison."""
    recipe: str
    """The recipe of the model, data, task and training that all strategies share: name or file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the recipe to change for all strategies, nested as in a recipe."""
    strategies: list[Entry] = Field(min_length=1)
    """Strategies as in a recipe; a mapping may set its own `quantize`."""
    quantize: list[str | dict[str, Any]] = Field(default=["none"], min_length=1)
    """Quantizations of the base model: each strategy that sets none runs with all of them."""
    seeds: PositiveInt | list[NonNegativeInt] = 5
    """The number of seeds (counted from 0), or a list of them."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-validation with the first seed instead of several seeds, for data too small to split;
    each fold has its own learning-rate search, which never sees the rows it is scored on."""
    budget: Budget = Budget()
    """The learning-rate search of each strategy."""
    reference: str | None = None
    """The strategy to compare the others with; null: full fine-tuning."""
    margin: NonNegativeFloat = 0.01
    """The loss in score that is acceptable for a cheaper strategy: a share of the perfect score,
    or of the reference's score where there is none (perplexity, RMSE)."""

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: int | list[int]) -> int | list[int]:
        if isinstance(seeds, list) and len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice: the same run would count twice")
        if seeds == []:
            raise ValueError("names no seed - list some, or set their number")
        return seeds

    @property
    def seed_list(self) -> list[int]:
        """The seeds of the runs."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def seeds_and_folds(self) -> list[tuple[int, int | None]]:
        """The seed and the fold of each run of a strategy."""
        if self.folds is None:
            return [(seed, None) for seed in self.seed_list]
        return [(self.seed_list[0], fold) for fold in range(self.folds)]


@dataclass(frozen=True)
class Variant:
    """A strategy with a quantization of the base model: one row of the report."""

    name: str
    recipe: Recipe
    """The recipe of its runs, without their seed."""
    incompatibility: str | None = None
    """Why it cannot run; it is in the report all the same."""


@dataclass(frozen=True)
class LoadedComparison:
    """A comparison with the variants that its file describes."""

    name: str
    comparison: Comparison
    variants: tuple[Variant, ...]
    added: tuple[str, ...]
    """Strategies of `ALWAYS` that the file does not name."""


def load_comparison(file: Path, settings: Sequence[str] = ()) -> LoadedComparison:
    """The comparison in `file`, with `key=value` overrides of its own settings (`seeds=2`,
    `budget.trials=0`) or of the recipe's (`data.path=...`).

    Raises `RecipeError` with all faults of the file, the recipe and the strategies.
    """
    if not file.is_file():
        raise RecipeError(f"there is no comparison '{file}' - name a YAML file such as {EXAMPLE}")
    overrides = kinds_first(parse_overrides(settings))
    check_names(override.key.partition(".")[0] for override in overrides)
    own = Composition(file.stem)
    own.merge(read_yaml(file), str(file))
    for override in overrides:
        if is_comparison_setting(override.key):
            own.set(*override)
    comparison = parse_comparison(own, str(file))
    shared = compose(comparison.recipe, (), file.parent / "recipes")
    shared.name = file.stem
    shared.merge(comparison.settings, str(file))
    for override in overrides:
        if not is_comparison_setting(override.key):
            shared.set(*override)
    for key in ("strategy", "quantize"):
        shared.settings.pop(key, None)
    if comparison.folds is not None:
        shared.set("data.folds", comparison.folds, str(file))
        shared.set("data.fold", 0, str(file))
    forbid_fallback(shared, str(file))
    check_learning_rate(shared)
    named = [name_of(entry) for entry in comparison.strategies]
    added = tuple(name for name in ALWAYS if name not in named)
    variants = build_variants(shared, comparison, added)
    return LoadedComparison(file.stem, comparison, variants, added)


def check_names(names: Iterable[str]) -> None:
    """Raise `RecipeError` for settings that neither a comparison nor a recipe has."""
    known = {*Comparison.model_fields, *Recipe.model_fields} - {"settings"}
    unknown = [name for name in names if name not in known]
    if unknown:
        faults = [Fault(name, f"no such setting - {nearest(name, known)}") for name in unknown]
        raise RecipeError("the command line cannot be read:", faults)


def is_comparison_setting(key: str) -> bool:
    """Whether a setting belongs to the comparison, not to its recipe."""
    return key.partition(".")[0] in Comparison.model_fields


def parse_comparison(composition: Composition, file: str) -> Comparison:
    """The comparison's settings; raises `RecipeError` that names the file."""
    try:
        return parse_settings(Comparison, composition.settings, "")
    except RecipeError as error:
        raise RecipeError(f"{file} is not a valid comparison:", error.faults) from None


def forbid_fallback(shared: Composition, source: str) -> None:
    """Allow fallback data only where the comparison itself sets them."""
    data = shared.settings.get("data")
    set_by = shared.sources.get("data.fallback")
    if isinstance(data, dict) and data.get("fallback") and set_by not in (source, "command line"):
        shared.set("data.fallback", "forbid", source)


def check_learning_rate(shared: Composition) -> None:
    """Raise `RecipeError` for a learning rate that all share: it favors some strategies."""
    training = shared.settings.get("training")
    rate = training.get("lr", "auto") if isinstance(training, dict) else "auto"
    if rate != "auto":
        what = (
            f"one learning rate ({rate}) for all strategies favors some - remove it: each strategy "
            "has its own default, and budget.trials searches around it"
        )
        raise RecipeError("the comparison would be unfair:", [Fault("training.lr", what)])


def build_variants(
    shared: Composition, comparison: Comparison, added: Sequence[str]
) -> tuple[Variant, ...]:
    """Every strategy with each quantization that it is to run with."""
    pairs = [
        (entry, quantize)
        for entry in [*comparison.strategies, *added]
        for quantize in quantizations_of(entry, comparison)
    ]
    variants, faults = [], list[Fault]()
    for name, (entry, quantize) in zip(variant_names(pairs), pairs, strict=True):
        try:
            variants.append(build_variant(name, shared, entry, quantize))
        except RecipeError as error:
            faults += error.faults or [Fault(name, error.message)]
    if faults:
        raise RecipeError(f"{shared.name} cannot be compared:", sorted(set(faults)))
    return tuple(variants)


def quantizations_of(entry: Entry, comparison: Comparison) -> list[Any]:
    """The quantization that the strategy sets itself, or all of the comparison."""
    if isinstance(entry, dict) and "quantize" in entry:
        return [entry["quantize"]]
    return list(comparison.quantize)


def build_variant(name: str, shared: Composition, entry: Entry, quantize: Any) -> Variant:
    """One variant; a strategy that is incompatible with the quantization is not an error."""
    strategy = entry
    if isinstance(entry, dict):
        strategy = {key: value for key, value in entry.items() if key != "quantize"}

    def recipe(quantize: Any) -> Recipe:
        composition = Composition(f"{name}_{shared.name}", copy.deepcopy(shared.settings))
        composition.sources = dict(shared.sources)
        composition.spellings = dict(shared.spellings)
        composition.set("strategy", strategy, f"strategies: {name}")
        composition.set("quantize", quantize, f"quantize of {name}")
        return Recipe.of(composition)

    unquantized = recipe("none")  # raises for what is wrong with every quantization
    try:
        return Variant(name, recipe(quantize))
    except RecipeError as error:
        Quantization.parse(quantize, "quantize")  # raises for an unknown quantization
        reason = "; ".join(fault.what for fault in error.faults)
        return Variant(name, unquantized.but(quantize="none"), reason)


def variant_names(pairs: Sequence[tuple[Entry, Any]]) -> list[str]:
    """A unique name for each strategy with its quantization, which is valid as a directory name."""
    names: list[str] = []
    for entry, quantize in pairs:
        kind = quantize.get("kind") if isinstance(quantize, dict) else quantize
        name = name_of(entry) + ("" if kind == "none" else f"_{kind}")
        name = re.sub(r"[^\w.+-]+", "-", name)[:60]
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return names


def name_of(entry: Entry) -> str:
    """A strategy's name with the settings it was given ('lora_r-4')."""
    if isinstance(entry, list):
        return "+".join(map(name_of, entry))
    if not isinstance(entry, dict):
        return str(entry)
    rest = [f"{k}-{v}" for k, v in entry.items() if k not in ("kind", "quantize", "variant")]
    return "_".join([str(entry.get("variant") or entry.get("kind")), *rest])
