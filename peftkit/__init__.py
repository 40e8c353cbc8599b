"""peftkit: parameter-efficient fine-tuning that says honestly what it did."""

import importlib
from typing import TYPE_CHECKING, Any

from peftkit import hub_kernels, openmp

if TYPE_CHECKING:
    from peftkit.comparing import compare
    from peftkit.errors import DataError, PeftkitError, RecipeError, RunError
    from peftkit.exporting import export
    from peftkit.merging import merge
    from peftkit.planning import plan
    from peftkit.predicting import predict
    from peftkit.recipe import Recipe
    from peftkit.reporting import report
    from peftkit.runner import train
    from peftkit.shared_base import SharedBase
    from peftkit.starting import new

PUBLIC = {
    "DataError": "errors",
    "PeftkitError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "RunError": "errors",
    "SharedBase": "shared_base",
    "compare": "comparing",
    "export": "exporting",
    "merge": "merging",
    "new": "starting",
    "plan": "planning",
    "predict": "predicting",
    "report": "reporting",
    "train": "runner",
}
__all__ = [
    "DataError",
    "PeftkitError",
    "Recipe",
    "RecipeError",
    "RunError",
    "SharedBase",
    "compare",
    "export",
    "merge",
    "new",
    "plan",
    "predict",
    "report",
    "train",
]
__version__ = "0.1.0"

hub_kernels.refuse()
openmp.wait_briefly()


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import peftkit` leaves torch alone."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'peftkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"peftkit.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
