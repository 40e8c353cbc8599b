"""Compose a recipe from its file, the files it builds on, and overrides.

Each value remembers where it was set, for error messages and `peftkit show`.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from peftkit.config.earlier_names import current_names, current_path
from peftkit.errors import Fault, RecipeError, nearest
from peftkit.storage.yaml import find_literals, load_yaml, parse_value, summarize_error

SHIPPED = Path(__file__).parents[1] / "recipes"
if not SHIPPED.is_dir():  # a checkout: the wheel carries the recipes inside the package
    SHIPPED = Path(__file__).parents[2] / "recipes"


class Override(NamedTuple):
    """A setting to change."""

    key: str
    """Its dotted path."""
    value: Any
    source: str
    """Where it is set: a file, the command line, Python."""
    spellings: Mapping[str, str] = {}
    """How numbers, booleans and nulls in the value were typed, by the dotted path below `key`."""


WANTS_TEXT = "valid string"
"""Part of the message about a value that should be text."""


@dataclass
class Composition:
    """Nested settings, and for each dotted path where its value was set."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)
    """How numbers, booleans and nulls were typed, by their dotted paths."""

    def set(
        self, key: str, value: Any, source: str, spellings: Mapping[str, str] | None = None
    ) -> None:
        """Set `value` at the dotted path `key`; mappings are merged."""
        steps = key.split(".")
        for step in reversed(steps[1:]):
            value = {step: value}
        typed = {f"{key}.{p}" if p else key: word for p, word in (spellings or {}).items()}
        self.merge({steps[0]: value}, source, typed)

    def merge(
        self,
        settings: Mapping[str, Any],
        source: str,
        spellings: Mapping[str, str] | None = None,
    ) -> None:
        """Merge nested settings key by key; a mapping with another `kind` replaces the old one."""
        self.settings = self._merged(self.settings, current_names(settings), "", source)
        self.spellings |= {current_path(path): word for path, word in (spellings or {}).items()}

    def respelled(self, faults: Iterable[Fault]) -> "Composition | None":
        """A copy in which values that should be text are text as typed (`007`, `true`).

        None if no fault is about such a value.
        """
        places = [fault.where for fault in faults if WANTS_TEXT in fault.what]
        meant = {
            p: w for p, w in self.spellings.items() if w and any(is_at(p, at) for at in places)
        }
        if not meant:
            return None
        kept = {p: word for p, word in self.spellings.items() if p not in meant}
        return replace(self, settings=with_words(self.settings, meant, ""), spellings=kept)

    def source_of(self, path: str) -> str | None:
        """Where `path` was set, or else its nearest parent, or else something below it."""
        steps = path.split(".")
        for end in range(len(steps), 0, -1):
            if (source := self.sources.get(".".join(steps[:end]))) is not None:
                return source
        return next((s for p, s in self.sources.items() if p.startswith(f"{path}.")), None)

    def _merged(self, old: Any, new: Any, path: str, source: str) -> Any:
        old, new = as_mappings(old, new)
        if not isinstance(new, Mapping):
            self._claim(path, source)
            return new
        if not isinstance(old, Mapping) or is_another_kind(old, new):
            self._claim(path, source if not new else None)
            old = {}
        merged = dict(old)
        for key, value in new.items():
            below = f"{path}.{key}" if path else str(key)
            merged[str(key)] = self._merged(merged.get(str(key)), value, below, source)
        return merged

    def _claim(self, path: str, source: str | None) -> None:
        for known in (self.sources, self.spellings):
            for gone in [below for below in known if is_at(below, path)]:
                del known[gone]
        if source is not None:
            self.sources[path] = source


def compose(
    name: str, overrides: Iterable[Override] = (), folder: Path | None = None
) -> Composition:
    """Compose the recipe `name` (a path or a name) with `overrides` on top.

    Names are looked up in `folder` (default: `./recipes`), then among the shipped recipes.
    Raises `RecipeError` if there is no such recipe, or a file cannot be read.
    """
    folders = [folder or Path("recipes"), SHIPPED]
    path = find_recipe(name, folders)
    composition = Composition(name=path.stem)
    merge_file(composition, path, folders, [])
    for override in kinds_first(overrides):
        composition.set(*override)
    return composition


def parse_overrides(arguments: Iterable[str], source: str = "command line") -> list[Override]:
    """Parse `key=value` arguments, whose values are YAML.

    Raises `RecipeError` with all faults, and how to type a value that is meant as text.
    """
    overrides, faults = [], []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not re.fullmatch(r"[^\s.=]+(\.[^\s.=]+)*", key):
            faults.append(Fault(argument, "is not of the form key=value, as in strategy.r=16"))
            continue
        try:
            value = parse_value(text)
            typed = {} if isinstance(value, str) else find_literals(text)
            overrides.append(Override(key, value, source, typed))
        except yaml.YAMLError as error:
            as_text = shlex.quote(f"{key}={json.dumps(text, ensure_ascii=False)}")
            what = (
                f"{text!r} is not YAML ({summarize_error(error)}) - if it is text, type {as_text}"
            )
            faults.append(Fault(f"{key} ({source})", what))
    if faults:
        raise RecipeError("the command line cannot be read:", faults)
    return overrides


def kinds_first(overrides: Iterable[Override]) -> list[Override]:
    """The overrides in order, but with each kind (`data.kind=files`, `strategy=full`) before the
    other settings of its part, which it would reset."""
    ordered: list[Override] = []
    for override in overrides:
        part, _, last = override.key.rpartition(".")
        if not part and isinstance(override.value, str):
            part, last = override.key, "kind"
        place = len(ordered)
        for index in range(len(ordered) - 1, -1, -1) if last == "kind" else ():
            key = ordered[index].key
            if key in (part, f"{part}.kind"):
                break
            place = index if is_at(key, part) else place
        ordered.insert(place, override)
    return ordered


def recipe_names(folder: Path | None = None) -> dict[str, Path]:
    """All recipes by name: those in `folder` (default: `./recipes`) and the shipped ones."""
    found: dict[str, Path] = {}
    for place in (SHIPPED, folder or Path("recipes")):
        for path in sorted(place.glob("*.yaml")):
            if not path.name.startswith("_"):
                found[path.stem] = path
    return dict(sorted(found.items()))


def find_recipe(name: str, folders: list[Path]) -> Path:
    """The file of the recipe `name`: a path, or a name in one of `folders`."""
    if not name:
        raise RecipeError(f"the recipe has no name - choose from {', '.join(recipe_names())}")
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return recipe_file(Path(name))
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    if Path(name).is_dir():
        return recipe_file(Path(name))
    known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    shown = known if name.startswith("_") else {k for k in known if not k.startswith("_")}
    raise RecipeError(f"no recipe is called {name!r} {places(folders)} - {nearest(name, shown)}")


def recipe_file(path: Path) -> Path:
    """`path`, if it is a file. Raises `RecipeError` that names what there is instead."""
    if path.is_file():
        return path
    if path.is_dir():
        inner = path / "recipe.yaml"
        hint = f"name the file in it: {inner}" if inner.is_file() else "name a YAML file"
        raise RecipeError(f"the recipe '{path}' is a directory - {hint}")
    beside = [other.name for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)]
    hint = nearest(path.name, beside) if beside else "check the path"
    raise RecipeError(f"there is no recipe file '{path}' here ({Path.cwd()}) - {hint}")


def places(folders: list[Path]) -> str:
    """Where a recipe was looked for, for a message."""
    first = folders[0]
    if not first.is_dir():
        return "among the shipped recipes"
    same = all(folder.resolve() == first.resolve() for folder in folders)
    return f"in {first}" if same else f"in {first} or among the shipped ones"


def merge_file(
    composition: Composition, path: Path, folders: list[Path], below: list[Path]
) -> None:
    """Merge the recipes that the file at `path` builds on, in order, and then the file itself."""
    if path.resolve() in [other.resolve() for other in below]:
        circle = " -> ".join(str(each) for each in [*below, path])
        raise RecipeError(f"base: is circular: {circle} - remove one of these bases")
    settings, typed = read_spelled(path)
    for base in bases_of(path, settings.pop("base", None)):
        try:
            found = find_recipe(base, [path.parent, *folders])
        except RecipeError as error:
            raise RecipeError(f"{path}: base: {error.message}") from None
        merge_file(composition, found, folders, [*below, path])
    composition.merge(settings, str(path), typed)


def bases_of(path: Path, base: Any) -> list[str]:
    """Names of the recipes that the one at `path` builds on."""
    names = [] if base is None else base if isinstance(base, list) else [base]
    for name in names:
        if not isinstance(name, str):
            what = f"should be a recipe's name or a list of names (got {name!r})"
            raise RecipeError(f"{path}: base: {what}")
    return names


def as_mappings(old: Any, new: Any) -> tuple[Any, Any]:
    """Two values to merge: text next to a mapping is its kind (`strategy=full`)."""
    if isinstance(old, str) and isinstance(new, Mapping):
        return {"kind": old}, new
    if isinstance(new, str) and isinstance(old, Mapping) and "kind" in old:
        return old, {"kind": new}
    return old, new


def is_another_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` has another kind than `old`, so that nothing of `old` is kept."""
    return "kind" in new and new["kind"] != old.get("kind")


def is_at(path: str, place: str) -> bool:
    """Whether a dotted path is `place`, or below it."""
    return path == place or path.startswith(f"{place}.")


def with_words(value: Any, words: Mapping[str, str], path: str) -> Any:
    """A copy of plain data with the text in `words` at their paths."""
    if path in words:
        return words[path]
    inner = f"{path}." if path else ""
    if isinstance(value, Mapping):
        return {key: with_words(each, words, f"{inner}{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [with_words(each, words, f"{inner}{index}") for index, each in enumerate(value)]
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file at `path`. Raises `RecipeError` with the file and the line."""
    return read_spelled(path)[0]


def read_spelled(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The mapping in the YAML file at `path`, and how numbers, booleans and nulls are typed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        settings, typed = load_yaml(text), find_literals(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not a recipe ({summarize_error(error)})") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 (byte {error.start}) - save it as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}) - check it") from None
    if settings is None:
        return {}, {}
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: should be a mapping such as 'model: ...' (got {settings!r})")
    return settings, typed


def flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted path, value)."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        path = f"{above}{key}"
        found += flat(value, f"{path}.") if isinstance(value, dict) and value else [(path, value)]
    return found
