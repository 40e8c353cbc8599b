"""Composition: a recipe's file, its bases and the overrides as one mapping; and who set what."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftkit.errors import Fault, RecipeError, nearest
from peftkit.yaml12 import brief, load_yaml

SHIPPED = Path(__file__).parent / "recipes"
if not SHIPPED.is_dir():  # a checkout: the wheel carries the recipes inside the package
    SHIPPED = Path(__file__).parents[1] / "recipes"


@dataclass
class Composition:
    """Settings as plain data, and for each dotted path below them where its value was set."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, source: str) -> None:
        """Merge `value` at the dotted path `key`."""
        steps = key.split(".")
        for step in reversed(steps[1:]):
            value = {step: value}
        self.merge({steps[0]: value}, source)

    def merge(self, settings: Mapping[str, Any], source: str) -> None:
        """Merge a whole mapping: key by key, unless a mapping names another kind."""
        self.settings = self._merged(self.settings, settings, "", source)

    def source_of(self, path: str) -> str | None:
        """Who set `path`: itself, what stands nearest above it, or something below it."""
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
        gone = [known for known in self.sources if known == path or known.startswith(f"{path}.")]
        for known in gone:
            del self.sources[known]
        if source is not None:
            self.sources[path] = source


def compose(
    name: str, overrides: Iterable[tuple[str, Any, str]] = (), folder: Path | None = None
) -> Composition:
    """The recipe `name` (a path or a name) with `overrides` of (dotted key, value, source) on top.

    Names are looked up in `folder` (default: `./recipes`), then among the shipped recipes.
    Raises `RecipeError` with every fault found in the overrides.
    """
    folders = [folder or Path("recipes"), SHIPPED]
    path = find_recipe(name, folders)
    composition = Composition(name=path.stem)
    merge_file(composition, path, folders, [])
    for key, value, source in overrides:
        composition.set(key, value, source)
    return composition


def parse_overrides(
    arguments: Iterable[str], source: str = "command line"
) -> list[tuple[str, Any, str]]:
    """`key=value` arguments as (dotted key, value, source); the value is read as YAML 1.2."""
    overrides, faults = [], []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not re.fullmatch(r"[^\s.=]+(\.[^\s.=]+)*", key):
            faults.append(Fault(argument, "is not of the form key=value, as in strategy.r=16"))
            continue
        try:
            overrides.append((key, load_yaml(text), source))
        except yaml.YAMLError as error:
            faults.append(Fault(f"{key} ({source})", f"{text!r} is not YAML ({brief(error)})"))
    if faults:
        raise RecipeError("the command line cannot be read:", faults)
    return overrides


def recipe_names(folder: Path | None = None) -> dict[str, Path]:
    """Every runnable recipe by name: those in `folder` (`./recipes`), then the shipped ones."""
    found: dict[str, Path] = {}
    for place in (SHIPPED, folder or Path("recipes")):
        for path in sorted(place.glob("*.yaml")):
            if not path.name.startswith("_"):
                found[path.stem] = path
    return dict(sorted(found.items()))


def find_recipe(name: str, folders: list[Path]) -> Path:
    """The file that `name` means: a path, or a name in one of `folders`."""
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
    raise RecipeError(f"no recipe is called {name!r} {told(folders)} - {nearest(name, shown)}")


def recipe_file(path: Path) -> Path:
    """`path`, if a file is there. Raises `RecipeError` that says what there is instead."""
    if path.is_file():
        return path
    if path.is_dir():
        inner = path / "recipe.yaml"
        hint = f"name the file in it: {inner}" if inner.is_file() else "name a YAML file"
        raise RecipeError(f"the recipe '{path}' is a folder - {hint}")
    beside = [other.name for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)]
    hint = nearest(path.name, beside) if beside else "check the path"
    raise RecipeError(f"there is no recipe file '{path}' here ({Path.cwd()}) - {hint}")


def told(folders: list[Path]) -> str:
    """Where a recipe was looked for, in words."""
    first = folders[0]
    if not first.is_dir():
        return "among the shipped recipes"
    same = all(folder.resolve() == first.resolve() for folder in folders)
    return f"in {first}" if same else f"in {first} or among the shipped ones"


def merge_file(
    composition: Composition, path: Path, folders: list[Path], below: list[Path]
) -> None:
    """Merge the bases of the file at `path`, in order, and then the file itself."""
    if path.resolve() in [other.resolve() for other in below]:
        circle = " -> ".join(str(each) for each in [*below, path])
        raise RecipeError(f"base: goes in a circle: {circle} - remove one of these bases")
    settings = read_yaml(path)
    for base in bases_of(path, settings.pop("base", None)):
        try:
            found = find_recipe(base, [path.parent, *folders])
        except RecipeError as error:
            raise RecipeError(f"{path}: base: {error.message}") from None
        merge_file(composition, found, folders, [*below, path])
    composition.merge(settings, str(path))


def bases_of(path: Path, base: Any) -> list[str]:
    """What the recipe at `path` builds on: nothing, one name or a list of them."""
    names = [] if base is None else base if isinstance(base, list) else [base]
    for name in names:
        if not isinstance(name, str):
            what = f"should be a recipe's name or a list of names (got {name!r})"
            raise RecipeError(f"{path}: base: {what}")
    return names


def as_mappings(old: Any, new: Any) -> tuple[Any, Any]:
    """A bare word beside a mapping is that mapping's kind (`strategy=full`)."""
    if isinstance(old, str) and isinstance(new, Mapping):
        return {"kind": old}, new
    if isinstance(new, str) and isinstance(old, Mapping) and "kind" in old:
        return old, {"kind": new}
    return old, new


def is_another_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` names a kind that `old` is not: then nothing of `old` stays behind."""
    return "kind" in new and new["kind"] != old.get("kind")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file at `path`; the error names the file and the line."""
    try:
        settings = load_yaml(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not a recipe ({brief(error)})") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text (byte {error.start}) - save it so") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}) - check it") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: should be a mapping such as 'model: ...' (got {settings!r})")
    return settings
