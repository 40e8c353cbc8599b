"""Parameters: which of an adapted model's are the base's own, by their names in it; their sizes."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from peftkit.errors import Fault, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

ATTACHED = "attached_by_peftkit"
"""Set on modules that a strategy of ours adds to a model."""
HELD = ("base_layer", "original_module")
"""What PEFT calls the module that it has wrapped."""


def own_modules(model: "nn.Module", name: str = "") -> Iterator[tuple[str, "nn.Module"]]:
    """The base's modules, without what PEFT or we have put beside and around them."""
    children = dict(model.named_children())
    if held := [children[key] for key in HELD if key in children]:
        yield from own_modules(held[0], name)
        return
    yield name, model
    for key, child in children.items():
        if not hasattr(child, ATTACHED):
            yield from own_modules(child, f"{name}.{key}" if name else key)


def own_parameters(model: "nn.Module") -> dict[str, "nn.Parameter"]:
    """The base's parameters, each once, by name."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for module_name, module in own_modules(model):
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{module_name}.{key}" if module_name else key] = parameter
    return found


def named_by(patterns: list[str], names: list[str], setting: str) -> set[str]:
    """Those of `names` that a pattern with * and ? names.

    Raises `RecipeError` with a fault for each pattern that names none.
    """
    hits = {pattern: [n for n in names if fnmatchcase(n, pattern)] for pattern in patterns}
    sample = ", ".join(names[:3] + names[-2:])
    faults = [
        Fault(setting, f"{pattern!r} names no parameter - they look like {sample}")
        for pattern, found in hits.items()
        if not found
    ]
    if faults:
        raise RecipeError("the strategy does not fit the model:", faults)
    return {name for found in hits.values() for name in found}


def is_norm(module: "nn.Module") -> bool:
    """Whether a module is a normalization (LayerNorm, RMSNorm, ...): their classes are many."""
    return "norm" in type(module).__name__.lower()


def size_of(parameter: "Tensor") -> int:
    """Weights in a parameter; a packed 4-bit one knows its own shape."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()
