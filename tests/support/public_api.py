"""Print the public API, a name with its signature a line: `python tests/support/public_api.py`."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

import peftkit
from peftkit.data import Data
from peftkit.strategies import PeftStrategy, Strategy
from peftkit.tasks import Task

EXTENSION_POINTS = {
    "peftkit.data.Data": Data,
    "peftkit.strategies.PeftStrategy": PeftStrategy,
    "peftkit.strategies.Strategy": Strategy,
    "peftkit.tasks.Task": Task,
}


def public_api() -> Iterator[str]:
    """The lines of tests/public_api.txt."""
    for name in peftkit.__all__:
        value = getattr(peftkit, name)
        yield f"peftkit.{name}{signature_of(value)}"
        if isinstance(value, type):
            yield from methods(f"peftkit.{name}", value)
    for name, owner in EXTENSION_POINTS.items():
        yield f"{name}{signature_of(owner)}"
        yield from (f"{name}.{each}: ClassVar" for each in class_variables(owner))
        yield from methods(name, owner)


def class_variables(owner: type[Any]) -> list[str]:
    """The public class variables that a class itself declares, sorted."""
    annotations = vars(owner).get("__annotations__", {})
    return sorted(n for n, a in annotations.items() if "ClassVar" in str(a) and n[0] != "_")


def methods(name: str, owner: type[Any]) -> Iterator[str]:
    """The public methods and properties that a class itself declares, sorted."""
    for attribute, value in sorted(vars(owner).items()):
        if attribute.startswith(("_", "model_")):
            continue
        if isinstance(value, property):
            yield f"{name}.{attribute}: property"
        elif inspect.isroutine(value):
            yield f"{name}.{attribute}{signature_of(getattr(owner, attribute))}"


def signature_of(value: Any) -> str:
    """A signature without modules, quotes and what else differs between versions of Python."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return f"({', '.join(value.model_fields)})"
    signature = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", str(inspect.signature(value)))
    return signature.replace("PosixPath", "Path").replace("'", "")


if __name__ == "__main__":
    print(*public_api(), sep="\n")
