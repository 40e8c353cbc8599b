"""The base's own parameters in an adapted model, their names and sizes."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from peftkit.errors import Fault, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

ATTACHED = "attached_by_peftkit"
"""Set on modules that a strategy of peftkit adds to a model."""
WRAPPED = ("base_layer", "original_module")
"""PEFT's names of a module that it has wrapped."""


def base_modules(model: "nn.Module", name: str = "") -> Iterator[tuple[str, "nn.Module"]]:
    """The base's modules by name, without those added or wrapped around them by PEFT or peftkit."""
    children = dict(model.named_children())
    if wrapped := [children[key] for key in WRAPPED if key in children]:
        yield from base_modules(wrapped[0], name)
        return
    yield name, model
    for key, child in children.items():
        if not hasattr(child, ATTACHED):
            yield from base_modules(child, f"{name}.{key}" if name else key)


def base_parameters(model: "nn.Module") -> dict[str, "nn.Parameter"]:
    """The base's parameters by name, each once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for module_name, module in base_modules(model):
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{module_name}.{key}" if module_name else key] = parameter
    return found


def match_parameters(patterns: list[str], names: list[str], setting: str) -> set[str]:
    """Those of `names` that match a pattern with * and ?.

    Raises `RecipeError` with a fault for each pattern without a match.
    """
    hits = {pattern: [n for n in names if fnmatchcase(n, pattern)] for pattern in patterns}
    sample = ", ".join(names[:3] + names[-2:])
    faults = [
        Fault(setting, f"{pattern!r} matches no parameter - their names are like {sample}")
        for pattern, found in hits.items()
        if not found
    ]
    if faults:
        raise RecipeError("the strategy does not fit the model:", faults)
    return {name for found in hits.values() for name in found}


def is_norm(module: "nn.Module") -> bool:
    """Whether a module is a normalization (LayerNorm, RMSNorm, ...), by its class name."""
    return "norm" in type(module).__name__.lower()


def size_of(parameter: "Tensor") -> int:
    """The number of weights in a parameter, also of a packed 4-bit one."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()
