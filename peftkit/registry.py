"""Components: validated, immutable settings; declaring a subclass registers it by its `kind`."""

import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from peftkit.errors import Fault, RecipeError, nearest

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """An immutable set of settings that rejects unknown ones; fields are documented below them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def to_dict(self) -> dict[str, Any]:
        """All settings, defaults included, as data that can be written and parsed again.

        Null is omitted if it is the default.
        """
        found = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                found[name] = value.to_dict()
            elif isinstance(value, list):
                found[name] = [
                    v.to_dict() if isinstance(v, Settings) else plain
                    for v, plain in zip(value, found[name], strict=True)
                ]
            elif value is None and field.get_default(call_default_factory=True) is None:
                found.pop(name, None)
        return found


class Component(Settings):
    """Base class of strategies, tasks, ...: the fields of a subclass are its settings."""

    family: ClassVar[str]
    """The name of the family in recipes and messages ('strategy')."""
    package: ClassVar[str]
    """The package that declares the built-in kinds."""
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Other names of the kind, each with the settings that it implies."""
    kind: str

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """The registered classes of this family by kind.

        Raises `RecipeError` if two classes have the same kind, or a plug-in cannot be imported.
        """
        import_declarations(cls.package)
        import_plugins()
        found: dict[str, type[Self]] = {}
        for each in descendants(cls):
            kind = each.model_fields["kind"].default
            if not isinstance(kind, str):
                continue  # a base class
            if kind in found and full_name(found[kind]) != full_name(each):
                both = " and ".join(sorted(map(full_name, (found[kind], each))))
                what = f"{both} are both called {kind!r} - rename one"
                raise RecipeError("a name is used twice:", [Fault(cls.family, what)])
            found[kind] = each
        return dict(sorted(found.items()))

    @classmethod
    def all_aliases(cls) -> dict[str, dict[str, Any]]:
        """The aliases of this family, each with the kind and the settings that it implies.

        Raises `RecipeError` if an alias is also another name.
        """
        kinds = cls.kinds()
        found: dict[str, dict[str, Any]] = {}
        for kind, each in kinds.items():
            for alias, settings in vars(each).get("aliases", {}).items():
                if alias in kinds or alias in found:
                    other = alias if alias in kinds else found[alias]["kind"]
                    what = f"{alias!r} is an alias of {kind!r} and of {other!r} - rename one"
                    raise RecipeError("a name is used twice:", [Fault(cls.family, what)])
                found[alias] = {"kind": kind, **settings}
        return found

    @classmethod
    def parse(cls, value: object, path: str) -> Self:
        """The component described by `value`, a kind or a mapping with one.

        Raises `RecipeError` with faults at dotted paths below `path`.
        """
        settings = {"kind": value} if isinstance(value, str) else value
        if not isinstance(settings, dict):
            what = f"should be the name of a {cls.family}, or a mapping with its 'kind'{got(value)}"
            raise RecipeError("", [Fault(path, what)])
        kind, kinds, all_aliases = settings.get("kind"), cls.kinds(), cls.all_aliases()
        names = sorted({*kinds, *all_aliases})
        if kind is None:
            raise RecipeError("", [Fault(path, f"has no 'kind' - choose from {', '.join(names)}")])
        if not isinstance(kind, str) or kind not in names:
            what = f"no {cls.family} is called {kind!r} - {nearest(str(kind), names)}"
            raise RecipeError("", [Fault(path, what)])
        if kind in all_aliases:
            settings = without_alias(settings, all_aliases[kind], path)
        return kinds[settings["kind"]].from_settings(settings, path)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], path: str) -> Self:
        """The component of this kind with `settings`; raises as `parse` does."""
        return parse_settings(cls, settings, path)


def without_alias(settings: dict[str, Any], implied: dict[str, Any], path: str) -> dict[str, Any]:
    """`settings` whose kind is an alias, with the kind and the settings that it implies."""
    for key, value in implied.items():
        if key != "kind" and settings.get(key, value) != value:
            what = f"'{settings['kind']}' implies {value!r} (got {settings[key]!r}) - remove one"
            raise RecipeError("", [Fault(f"{path}.{key}", what)])
    return {**settings, **implied}


def full_name(cls: type[Any]) -> str:
    """The module and the name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def parse_settings(model: type[Model], settings: object, path: str) -> Model:
    """`settings` validated as `model`; raises `RecipeError` with all faults at their dotted paths.

    Validation is strict, as of JSON: neither `true` nor "8" is a number, a list may be a tuple.
    """
    try:
        return model.model_validate_json(json.dumps(settings, default=to_json), strict=True)
    except ValidationError as error:
        raise recipe_error(error, model, path) from None


def to_json(value: Any) -> Any:
    """A Python value as a recipe file would have it."""
    if isinstance(value, Settings):
        return value.to_dict()
    return list(value) if isinstance(value, (set, frozenset)) else str(value)


def recipe_error(error: ValidationError, model: type[BaseModel], path: str) -> RecipeError:
    """pydantic's error as a `RecipeError`, with a fault for each setting."""
    faults: dict[str, list[str]] = {}
    for detail in error.errors():
        steps = settings_path(model, detail["loc"])
        where = ".".join([path, *steps] if path else steps) or model.__name__.lower()
        faults.setdefault(where, []).append(describe(detail, model, steps))
    return RecipeError("", [Fault(w, with_hint(join(what))) for w, what in faults.items()])


def with_hint(message: str) -> str:
    """The message, with a hint for text that YAML reads as another type."""
    needs_quotes = message.startswith(NO_TEXT) and not message.endswith("(got null)")
    return f"{message} - put it in quotes" if needs_quotes else message


def settings_path(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The settings in pydantic's location, without the branches of unions."""
    steps: list[str] = []
    names = list(map(str, location))
    for index, step in enumerate(names):
        steps.append(step)
        field = model.model_fields.get(step)
        if field is None:
            break
        if get_origin(field.annotation) is dict:  # keys of a free mapping are no settings
            return steps + names[index + 1 : index + 2]
        inner = settings_in(field.annotation)
        if inner is None:
            break
        model = inner
    return steps


NO_TEXT = "input should be a valid string (got "
"""The beginning of pydantic's message for a number or a boolean instead of text."""
YAML_MESSAGES = {
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "list_type": "should be a list",
}
"""Messages in terms of YAML, for pydantic's of objects and arrays."""


def describe(detail: Any, model: type[BaseModel], steps: list[str]) -> str:
    """The message for one of pydantic's error details."""
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"no such setting - {nearest(steps[-1], fields_at(model, steps[:-1]))}"
    if kind == "missing":
        return "is required, and not set"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message if " - " in message else f"{message}{got(detail['input'])}"
    text = YAML_MESSAGES.get(kind, f"{message[0].lower()}{message[1:]}")
    return f"{text}{got(detail['input'])}"


def got(value: Any) -> str:
    """The invalid value, as in a recipe."""
    is_constant = isinstance(value, bool) or value is None
    return f" (got {json.dumps(value) if is_constant else repr(value)})"


def join(messages: list[str]) -> str:
    """One message from those of a union's branches ("greater than 0 or 'auto'")."""
    first, *others = dict.fromkeys(messages)
    if not others:
        return first
    start, _, ending = first.rpartition(" (got ")
    alternatives = [
        other.rpartition(" (got ")[0].removeprefix("input ").removeprefix("should be ")
        for other in others
    ]
    return f"{' or '.join([start, *dict.fromkeys(alternatives)])} (got {ending}"


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """The nested settings of a field, which may be optional; None if it has none."""
    is_union = get_origin(annotation) in (Union, UnionType)
    types = [each for each in get_args(annotation) if each is not NoneType] if is_union else []
    (one,) = types if len(types) == 1 else [annotation]
    # in Python 3.10 `list[str]` is a type, which issubclass refuses
    is_class = get_origin(one) is None and isinstance(one, type)
    return one if is_class and issubclass(one, BaseModel) else None


def fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    """The names of the settings at `steps` below `model`."""
    for step in steps:
        field = model.model_fields.get(step)
        inner = None if field is None else settings_in(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def descendants(cls: type[Any]) -> list[type[Any]]:
    """All subclasses of `cls`, in the order of their declaration."""
    return [d for child in cls.__subclasses__() for d in (child, *descendants(child))]


@cache
def import_declarations(package: str) -> None:
    """Import `package` and all its modules, which registers their components."""
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{package}."):
        importlib.import_module(found.name)


def import_plugins() -> None:
    """Import every installed plug-in (entry points in the group `peftkit.plugins`)."""
    for entry in installed_plugins():
        import_plugin(entry.value, f"the entry point '{entry.name}'")


@cache
def installed_plugins() -> tuple[EntryPoint, ...]:
    """The entry points of installed plug-ins."""
    return tuple(entry_points(group="peftkit.plugins"))


def import_named(modules: Sequence[str], where: str) -> None:
    """Import plug-ins by name."""
    for module in modules:
        import_plugin(module, where)


def import_plugin(module: str, where: str) -> None:
    """Import one plug-in module; raises `RecipeError` if that fails, whatever the reason."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        hint = "fix or remove it"
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            hint = "install it, or put its folder on PYTHONPATH"
        what = f"plug-in {module!r} cannot be imported ({type(error).__name__}: {error}) - {hint}"
        raise RecipeError("a plug-in is broken:", [Fault(where, what)]) from error
