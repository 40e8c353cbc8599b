"""Components: frozen settings whose classes are found by `kind`; declaring one registers it."""

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
    """A frozen value that refuses settings it does not know; field docs stand below the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def plain(self) -> dict[str, Any]:
        """All settings as plain data, defaults included, which says the same when it is read.

        Null is left out where it is the default, and kept where it switches a default off.
        """
        said = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                said[name] = value.plain()
            elif isinstance(value, list):
                said[name] = [
                    v.plain() if isinstance(v, Settings) else plain
                    for v, plain in zip(value, said[name], strict=True)
                ]
            elif value is None and field.get_default(call_default_factory=True) is None:
                said.pop(name, None)
        return said


class Component(Settings):
    """One way to do a thing (a strategy, a task, ...): its fields are its settings."""

    family: ClassVar[str]
    """What the family is called in a recipe and in errors ('strategy')."""
    package: ClassVar[str]
    """The module or package whose import declares the family's own kinds."""
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Further names of a kind, each with the settings it stands for."""
    kind: str

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Every registered kind of this family, by name.

        Raises `RecipeError` where two classes have the same one, or a plug-in does not import.
        """
        import_declarations(cls.package)
        import_plugins()
        found: dict[str, type[Self]] = {}
        for each in descendants(cls):
            kind = each.model_fields["kind"].default
            if not isinstance(kind, str):
                continue  # a class to build on
            if kind in found and full_name(found[kind]) != full_name(each):
                both = " and ".join(sorted(map(full_name, (found[kind], each))))
                what = f"{both} are both called {kind!r} - rename one"
                raise RecipeError("a name is taken twice:", [Fault(cls.family, what)])
            found[kind] = each
        return dict(sorted(found.items()))

    @classmethod
    def all_aliases(cls) -> dict[str, dict[str, Any]]:
        """Every alias in this family, with the settings that it stands for, its kind among them.

        Raises `RecipeError` where an alias is another's name.
        """
        kinds = cls.kinds()
        found: dict[str, dict[str, Any]] = {}
        for kind, each in kinds.items():
            for alias, settings in vars(each).get("aliases", {}).items():
                if alias in kinds or alias in found:
                    other = alias if alias in kinds else found[alias]["kind"]
                    what = f"{alias!r} is an alias of {kind!r} and taken by {other!r} - rename one"
                    raise RecipeError("a name is taken twice:", [Fault(cls.family, what)])
                found[alias] = {"kind": kind, **settings}
        return found

    @classmethod
    def parse(cls, value: object, path: str) -> Self:
        """The component that `value` (a kind, or a mapping with one) describes.

        Raises `RecipeError` whose faults' `where` are dotted paths below `path`.
        """
        settings = {"kind": value} if isinstance(value, str) else value
        if not isinstance(settings, dict):
            what = f"should be a {cls.family}'s name or a mapping with its 'kind'{got(value)}"
            raise RecipeError("", [Fault(path, what)])
        kind, kinds, all_aliases = settings.get("kind"), cls.kinds(), cls.all_aliases()
        names = sorted({*kinds, *all_aliases})
        if kind is None:
            raise RecipeError("", [Fault(path, f"names no kind - choose from {', '.join(names)}")])
        if not isinstance(kind, str) or kind not in names:
            what = f"no {cls.family} is called {kind!r} - {nearest(str(kind), names)}"
            raise RecipeError("", [Fault(path, what)])
        if kind in all_aliases:
            settings = spelled_out(settings, all_aliases[kind], path)
        return kinds[settings["kind"]].from_settings(settings, path)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], path: str) -> Self:
        """The component of this kind that `settings` describe; raises as `parse` does."""
        return parse_settings(cls, settings, path)


def spelled_out(settings: dict[str, Any], meant: dict[str, Any], path: str) -> dict[str, Any]:
    """`settings` whose kind is an alias, as the kind and the settings it stands for."""
    for key, value in meant.items():
        if key != "kind" and settings.get(key, value) != value:
            what = (
                f"'{settings['kind']}' means {value!r} (got {settings[key]!r}) - drop one of them"
            )
            raise RecipeError("", [Fault(f"{path}.{key}", what)])
    return {**settings, **meant}


def full_name(cls: type[Any]) -> str:
    """Where a class is declared, and what it is called there."""
    return f"{cls.__module__}.{cls.__qualname__}"


def parse_settings(model: type[Model], settings: object, path: str) -> Model:
    """Validate `settings` as `model`; all faults at once, each with its dotted path.

    They are read as JSON is, strictly: `true` is no number and "8" neither, a list may be a tuple.
    """
    try:
        return model.model_validate_json(json.dumps(settings, default=plain_data), strict=True)
    except ValidationError as error:
        raise refusal(error, model, path) from None


def plain_data(value: Any) -> Any:
    """What Python code may hand over, as what a recipe's file would say."""
    if isinstance(value, Settings):
        return value.plain()
    return list(value) if isinstance(value, (set, frozenset)) else str(value)


def refusal(error: ValidationError, model: type[BaseModel], path: str) -> RecipeError:
    """pydantic's error as ours: a fault for each setting."""
    faults: dict[str, list[str]] = {}
    for detail in error.errors():
        steps = settings_path(model, detail["loc"])
        where = ".".join([path, *steps] if path else steps) or model.__name__.lower()
        faults.setdefault(where, []).append(complaint(detail, model, steps))
    return RecipeError("", [Fault(w, cured(joined(what))) for w, what in faults.items()])


def cured(complaint: str) -> str:
    """What is wrong, and what to do where YAML took what should be text for something else."""
    taken = complaint.startswith(NO_TEXT) and not complaint.endswith("(got null)")
    return f"{complaint} - put it in quotes" if taken else complaint


def settings_path(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The part of pydantic's location that names settings, without the branches of a union."""
    steps: list[str] = []
    names = list(map(str, location))
    for index, step in enumerate(names):
        steps.append(step)
        field = model.model_fields.get(step)
        if field is None:
            break
        if get_origin(field.annotation) is dict:  # a free mapping: its keys are the user's
            return steps + names[index + 1 : index + 2]
        inner = settings_in(field.annotation)
        if inner is None:
            break
        model = inner
    return steps


NO_TEXT = "input should be a valid string (got "
"""How a complaint about a number or a boolean begins."""
OUR_WORDS = {
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "list_type": "should be a list",
}
"""What YAML's users call what pydantic calls objects and arrays."""


def complaint(detail: Any, model: type[BaseModel], steps: list[str]) -> str:
    """What one of pydantic's error details says, in our words."""
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"no such setting - {nearest(steps[-1], fields_at(model, steps[:-1]))}"
    if kind == "missing":
        return "is required, and nothing sets it"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message if " - " in message else f"{message}{got(detail['input'])}"
    said = OUR_WORDS.get(kind, f"{message[0].lower()}{message[1:]}")
    return f"{said}{got(detail['input'])}"


def got(value: Any) -> str:
    """The value that was refused, as it would stand in a recipe."""
    words = isinstance(value, bool) or value is None
    return f" (got {json.dumps(value) if words else repr(value)})"


def joined(complaints: list[str]) -> str:
    """One sentence of the complaints of a union's branches ("greater than 0 or 'auto'")."""
    first, *others = dict.fromkeys(complaints)
    if not others:
        return first
    said, _, ending = first.rpartition(" (got ")
    alternatives = [
        other.rpartition(" (got ")[0].removeprefix("input ").removeprefix("should be ")
        for other in others
    ]
    return f"{' or '.join([said, *dict.fromkeys(alternatives)])} (got {ending}"


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """The further settings that a field holds, or may hold where it may be null; None if none."""
    is_union = get_origin(annotation) in (Union, UnionType)
    said = [each for each in get_args(annotation) if each is not NoneType] if is_union else []
    (one,) = said if len(said) == 1 else [annotation]
    # in Python 3.10 `list[str]` is a type, of which issubclass will not hear
    plain = get_origin(one) is None and isinstance(one, type)
    return one if plain and issubclass(one, BaseModel) else None


def fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    """The names of the settings `steps` below `model`."""
    for step in steps:
        field = model.model_fields.get(step)
        inner = None if field is None else settings_in(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def descendants(cls: type[Any]) -> list[type[Any]]:
    """All classes below `cls`, in the order of their declaration."""
    return [d for child in cls.__subclasses__() for d in (child, *descendants(child))]


@cache
def import_declarations(package: str) -> None:
    """Import `package` and all modules below it, so that what they declare is registered."""
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{package}."):
        importlib.import_module(found.name)


def import_plugins() -> None:
    """Import every installed plug-in (entry points in the group `peftkit.plugins`)."""
    for entry in installed_plugins():
        import_plugin(entry.value, f"the entry point '{entry.name}'")


@cache
def installed_plugins() -> tuple[EntryPoint, ...]:
    """What the installed packages offer."""
    return tuple(entry_points(group="peftkit.plugins"))


def import_named(modules: Sequence[str], where: str) -> None:
    """Import the plug-ins that are named, so that what they declare is known."""
    for module in modules:
        import_plugin(module, where)


def import_plugin(module: str, where: str) -> None:
    """Import one plug-in module; one that fails says so itself and is never an 'unknown name'."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        hint = "mend or remove it"
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            hint = "install it, or put its folder on PYTHONPATH"
        what = f"plug-in {module!r} does not import ({type(error).__name__}: {error}) - {hint}"
        raise RecipeError("a plug-in is broken:", [Fault(where, what)]) from error
