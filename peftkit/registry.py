"""Components: frozen settings whose classes are found by their `kind`; declaring one registers it."""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from peftkit.errors import Fault, RecipeError, nearest

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """A frozen value that refuses settings it does not know; a string below a field documents it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Component(Settings):
    """One way to do a thing (a strategy, a task, ...): its fields are its settings."""

    family: ClassVar[str]
    """What the family is called in a recipe and in errors ('strategy')."""
    package: ClassVar[str]
    """The module or package whose import declares the family's own kinds."""
    kind: str

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Every registered kind of this family, by name."""
        import_declarations(cls.package)
        import_plugins()
        found = {c.model_fields["kind"].default: c for c in descendants(cls)}
        return {kind: found[kind] for kind in sorted(k for k in found if isinstance(k, str))}

    @classmethod
    def parse(cls, value: object, path: str) -> Self:
        """The component that `value` (a kind, or a mapping with one) describes.

        Raises `RecipeError` whose faults' `where` are dotted paths below `path`.
        """
        settings = {"kind": value} if isinstance(value, str) else value
        if not isinstance(settings, dict):
            what = f"should be the name of a {cls.family} or a mapping with its 'kind' (got {value!r})"
            raise RecipeError("", [Fault(path, what)])
        kind, kinds = settings.get("kind"), cls.kinds()
        if kind is None:
            raise RecipeError("", [Fault(path, f"names no kind - choose from {', '.join(kinds)}")])
        if kind not in kinds:
            what = f"no {cls.family} is called {kind!r} - {nearest(str(kind), kinds)}"
            raise RecipeError("", [Fault(path, what)])
        return parse_settings(kinds[kind], settings, path)


def parse_settings(model: type[Model], settings: object, path: str) -> Model:
    """Validate `settings` as `model`; all faults at once, each with its dotted path."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        faults: dict[str, list[str]] = {}
        for detail in error.errors():
            steps = settings_path(model, detail["loc"])
            where = ".".join([path, *steps] if path else steps) or model.__name__.lower()
            faults.setdefault(where, []).append(complaint(detail, model, steps))
        raise RecipeError("", [Fault(w, joined(what)) for w, what in faults.items()]) from None


def settings_path(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The part of pydantic's location that names settings, without the branches of a union."""
    steps: list[str] = []
    for step in map(str, location):
        steps.append(step)
        field = model.model_fields.get(step)
        if field is None or not is_settings(field.annotation):
            break
        model = field.annotation  # type: ignore[assignment]
    return steps


def complaint(detail: Any, model: type[BaseModel], steps: list[str]) -> str:
    """What one of pydantic's error details says, in our words."""
    if detail["type"] == "extra_forbidden":
        return f"no such setting - {nearest(steps[-1], fields_at(model, steps[:-1]))}"
    if detail["type"] == "missing":
        return "is required, and nothing sets it"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return str(message)
    return f"{message[0].lower()}{message[1:]} (got {detail['input']!r})"


def joined(complaints: list[str]) -> str:
    """One sentence of the complaints of a union's branches ('greater than 0 or 'auto')."""
    first, *others = dict.fromkeys(complaints)
    if not others:
        return first
    said, _, got = first.rpartition(" (got ")
    alternatives = [o.rpartition(" (got ")[0].removeprefix("input should be ") for o in others]
    return f"{' or '.join([said, *alternatives])} (got {got}"


def is_settings(annotation: object) -> bool:
    """Whether a field holds further settings."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    """The names of the settings `steps` below `model`."""
    for step in steps:
        field = model.model_fields.get(step)
        if field is None or not is_settings(field.annotation):
            return []
        model = field.annotation  # type: ignore[assignment]
    return list(model.model_fields)


def descendants(cls: type[Any]) -> list[type[Any]]:
    """All classes below `cls`, in the order of their declaration."""
    return [d for child in cls.__subclasses__() for d in (child, *descendants(child))]


@cache
def import_declarations(package: str) -> None:
    """Import `package` and the modules in it, so that what they declare is registered."""
    module = importlib.import_module(package)
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"{package}.{found.name}")


@cache
def import_plugins() -> None:
    """Import every installed plug-in (entry points in the group `peftkit.plugins`)."""
    for entry in entry_points(group="peftkit.plugins"):
        import_plugin(entry.value, f"the entry point '{entry.name}'")


def import_plugin(module: str, source: str) -> None:
    """Import one plug-in module; one that fails says so itself and is never an 'unknown name'."""
    try:
        importlib.import_module(module)
    except Exception as error:
        what = f"plug-in {module!r} does not import ({type(error).__name__}: {error}) - mend or remove it"
        raise RecipeError("a plug-in is broken", [Fault(source, what)]) from error
