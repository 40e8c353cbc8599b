"""peftkit: parameter-efficient fine-tuning by recipe, with records that can be compared."""

import importlib
from typing import TYPE_CHECKING, Any

from peftkit.runtime import hub_kernels, openmp

if TYPE_CHECKING:
    from peftkit.comparison.compare import compare
    from peftkit.config.recipe import Recipe
    from peftkit.errors import DataError, PeftkitError, RecipeError, RunError
    from peftkit.exporting.export import export
    from peftkit.inference.multi_adapter import SharedBase
    from peftkit.inference.predictor import predict
    from peftkit.merging.merge import merge
    from peftkit.planning.plan import plan
    from peftkit.reporting.report import report
    from peftkit.runs.runner import train
    from peftkit.scaffold.recipe_writer import new

PUBLIC = {
    "DataError": "errors",
    "PeftkitError": "errors",
    "Recipe": "config.recipe",
    "RecipeError": "errors",
    "RunError": "errors",
    "SharedBase": "inference.multi_adapter",
    "compare": "comparison.compare",
    "export": "exporting.export",
    "merge": "merging.merge",
    "new": "scaffold.recipe_writer",
    "plan": "planning.plan",
    "predict": "inference.predictor",
    "report": "reporting.report",
    "train": "runs.runner",
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
__version__ = "0.2.0"

hub_kernels.refuse()
openmp.wait_briefly()


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import peftkit` does not import torch."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'peftkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"peftkit.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
