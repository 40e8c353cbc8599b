"""Comparisons: a recipe, the strategies to hold against each other, seeds and a tuning budget."""

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
"""Strategies that every comparison has: the most and the least that could be trained."""

EXAMPLE = "benchmarks/imdb.yaml"
Entry = str | dict[str, Any] | list[Any]


class Budget(Settings):
    """What is spent on each strategy's learning rate: the same on all."""

    trials: NonNegativeInt = 3
    """Learning rates tried a strategy, its own default first; 0: all keep their defaults."""
    rows: PositiveInt | None = None
    """Training rows a trial; all of them where null."""
    factor: float = Field(default=3.0, gt=1)
    """The rates are the default times 1, `factor`, 1/`factor`, `factor`^2, ..."""
    seed: NonNegativeInt = 1000
    """Seeds the trials; better none of the runs' own."""


class Comparison(Settings):
    """What a comparison's file says."""

    description: str | None = None
    """A sentence about it."""
    recipe: str
    """The recipe whose model, data, task and training all strategies share: a name or a file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What of it is changed for all, nested as in a recipe."""
    strategies: list[Entry] = Field(min_length=1)
    """Each a strategy as in a recipe; a mapping may have a `quantize` of its own."""
    quantize: list[str | dict[str, Any]] = Field(default=["none"], min_length=1)
    """How the base is held: every strategy without its own word on it is run in each way."""
    seeds: PositiveInt | list[NonNegativeInt] = 5
    """How many seeds (from 0 on), or which."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-validation with the first seed in place of several seeds, for data too small to split;
    each fold has a search of its own, which never sees the rows it is scored on."""
    budget: Budget = Budget()
    """What is spent on each strategy's learning rate."""
    reference: str | None = None
    """The strategy that the others are compared with; null: full fine-tuning."""
    margin: NonNegativeFloat = 0.01
    """What a cheaper strategy may lose and still be shipped: a share of the perfect score, or of
    the reference's where there is none (perplexity, RMSE)."""

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: int | list[int]) -> int | list[int]:
        if isinstance(seeds, list) and len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice: its runs would be one run counted twice")
        if seeds == []:
            raise ValueError("names no seed - give some, or how many there should be")
        return seeds

    @property
    def seed_list(self) -> list[int]:
        """The seeds of the runs."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def spread(self) -> list[tuple[int, int | None]]:
        """What each strategy's runs differ in: seed and fold."""
        if self.folds is None:
            return [(seed, None) for seed in self.seed_list]
        return [(self.seed_list[0], fold) for fold in range(self.folds)]


@dataclass(frozen=True)
class Way:
    """One strategy on a base held in one way: a row of the table."""

    name: str
    recipe: Recipe
    """Without a seed of its own."""
    refused: str | None = None
    """Why it cannot be run; it is a row all the same."""


@dataclass(frozen=True)
class Ways:
    """What a comparison's file comes to."""

    name: str
    comparison: Comparison
    ways: tuple[Way, ...]
    added: tuple[str, ...]
    """Strategies that the file does not name and every comparison has."""


def load_comparison(file: Path, settings: Sequence[str] = ()) -> Ways:
    """The comparison that `file` describes, with `key=value` settings on top: of the comparison
    (`seeds=2`, `budget.trials=0`) or of the recipe (`data.path=...`).

    Raises `RecipeError` with all faults: of the file, the recipe and each strategy.
    """
    if not file.is_file():
        raise RecipeError(f"there is no comparison '{file}' - name a YAML file, say {EXAMPLE}")
    overrides = kinds_first(parse_overrides(settings))
    check_names(override.key.partition(".")[0] for override in overrides)
    own = Composition(file.stem)
    own.merge(read_yaml(file), str(file))
    for override in overrides:
        if is_own(override.key):
            own.set(*override)
    comparison = parse_comparison(own, str(file))
    shared = compose(comparison.recipe, (), file.parent / "recipes")
    shared.name = file.stem
    shared.merge(comparison.settings, str(file))
    for override in overrides:
        if not is_own(override.key):
            shared.set(*override)
    for key in ("strategy", "quantize"):
        shared.settings.pop(key, None)
    if comparison.folds is not None:
        shared.set("data.folds", comparison.folds, str(file))
        shared.set("data.fold", 0, str(file))
    forbid_fallback(shared, str(file))
    check_rate(shared)
    named = [name_of(entry) for entry in comparison.strategies]
    added = tuple(name for name in ALWAYS if name not in named)
    return Ways(file.stem, comparison, made_ways(shared, comparison, added), added)


def check_names(names: Iterable[str]) -> None:
    """Refuse settings that neither a comparison nor a recipe has."""
    known = {*Comparison.model_fields, *Recipe.model_fields} - {"settings"}
    unknown = [name for name in names if name not in known]
    if unknown:
        faults = [Fault(name, f"no such setting - {nearest(name, known)}") for name in unknown]
        raise RecipeError("the command line cannot be read:", faults)


def is_own(key: str) -> bool:
    """Whether a setting is the comparison's, not its recipe's."""
    return key.partition(".")[0] in Comparison.model_fields


def parse_comparison(composition: Composition, file: str) -> Comparison:
    """The comparison's settings; raises `RecipeError` with each fault's place."""
    try:
        return parse_settings(Comparison, composition.settings, "")
    except RecipeError as error:
        raise RecipeError(f"{file} is not a comparison:", error.faults) from None


def forbid_fallback(shared: Composition, source: str) -> None:
    """No comparison is made on other data than it names, unless it asks for them itself."""
    data = shared.settings.get("data")
    asked = shared.sources.get("data.fallback")
    if isinstance(data, dict) and data.get("fallback") and asked not in (source, "command line"):
        shared.set("data.fallback", "forbid", source)


def check_rate(shared: Composition) -> None:
    """Refuse one learning rate for all: it favors the strategy that it was chosen for."""
    training = shared.settings.get("training")
    rate = training.get("lr", "auto") if isinstance(training, dict) else "auto"
    if rate != "auto":
        what = (
            f"one learning rate ({rate}) for all strategies favors some - leave it out: each "
            "has a default of its own, and budget.trials searches around it"
        )
        raise RecipeError("the comparison would not be fair:", [Fault("training.lr", what)])


def made_ways(shared: Composition, comparison: Comparison, added: Sequence[str]) -> tuple[Way, ...]:
    """Every strategy in each way that the base is to be held."""
    asked = [
        (entry, held)
        for entry in [*comparison.strategies, *added]
        for held in holdings(entry, comparison)
    ]
    ways, faults = [], list[Fault]()
    for name, (entry, held) in zip(way_names(asked), asked, strict=True):
        try:
            ways.append(made_way(name, shared, entry, held))
        except RecipeError as error:
            faults += error.faults or [Fault(name, error.message)]
    if faults:
        raise RecipeError(f"{shared.name} cannot be compared:", sorted(set(faults)))
    return tuple(ways)


def holdings(entry: Entry, comparison: Comparison) -> list[Any]:
    """How the base is held for one strategy: in its own way, or in all of the comparison's."""
    if isinstance(entry, dict) and "quantize" in entry:
        return [entry["quantize"]]
    return list(comparison.quantize)


def made_way(name: str, shared: Composition, entry: Entry, held: Any) -> Way:
    """One strategy on one base; what it refuses of the base makes it a row that is not run."""
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

    whole = recipe("none")  # what is wrong here is wrong anyway
    try:
        return Way(name, recipe(held))
    except RecipeError as error:
        Quantization.parse(held, "quantize")  # a way of holding that does not exist is a mistake
        return Way(name, whole.but(quantize="none"), "; ".join(f.what for f in error.faults))


def way_names(asked: Sequence[tuple[Entry, Any]]) -> list[str]:
    """A name for each, which can name a folder: strategy, its settings, the base's; none twice."""
    names: list[str] = []
    for entry, held in asked:
        kind = held.get("kind") if isinstance(held, dict) else held
        name = name_of(entry) + ("" if kind == "none" else f"_{kind}")
        name = re.sub(r"[^\w.+-]+", "-", name)[:60]
        again = sum(
            re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names
        )
        names.append(f"{name}-{again + 1}" if again else name)
    return names


def name_of(entry: Entry) -> str:
    """A strategy as one would call it: its name, and the settings that are given with it."""
    if isinstance(entry, list):
        return "+".join(map(name_of, entry))
    if not isinstance(entry, dict):
        return str(entry)
    rest = [f"{k}-{v}" for k, v in entry.items() if k not in ("kind", "quantize", "variant")]
    return "_".join([str(entry.get("variant") or entry.get("kind")), *rest])
