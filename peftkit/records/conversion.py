"""Convert what peftkit 0.1 (schema 1) wrote: records, run descriptions and manifests."""

from collections.abc import Mapping
from typing import Any

from peftkit.config.earlier_names import current_names

RENAMED = {
    "artefact_bytes": "artifact_bytes",
    "asked": "requested",
    "better_than_untuned": "better_than_untrained",
    "stand_in": "is_fallback",
    "tuned": "fitted_state",
    "untuned": "untrained",
}
"""Keys, wherever they are in a record."""
RECIPE = ("data", "quantize", "strategy", "task", "training")
"""Keys of a manifest or a recipe whose values are settings."""


def convert(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record, run description or manifest of schema 1 to schema 2.

    Damaged values are kept: whoever reads them reports them.
    """
    found: dict[str, Any] = rename_keys(dict(stored))
    if isinstance(found.get("recipe"), Mapping):
        found["recipe"] = current_names(found["recipe"], warn=False)
    return found


def convert_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a manifest of schema 1, including its settings of strategy, task and quantization."""
    own = {key: stored[key] for key in RECIPE if key in stored}
    return {**convert(stored), **current_names(own, warn=False)}


def rename_keys(value: Any) -> Any:
    """A copy of plain data with renamed keys."""
    if isinstance(value, Mapping):
        # the recipe is renamed by its paths, not by its keys
        return {
            RENAMED.get(key, key): inner if key == "recipe" else rename_keys(inner)
            for key, inner in value.items()
        }
    return [rename_keys(each) for each in value] if isinstance(value, list) else value
