"""Convert what peftkit 0.1 (schema 1) wrote: records, run descriptions and manifests."""

from collections.abc import Mapping
from typing import Any

from peftkit.config.earlier_names import current_names

RENAMED = {
    "artefact_bytes": "artifact_bytes",
    "better_than_untuned": "better_than_untrained",
    "stand_in": "is_fallback",
    "untuned": "untrained",
}
"""Keys, wherever they are in a record."""
RECIPE = ("data", "quantize", "strategy", "task", "training")
"""Keys of a manifest or a recipe whose values are settings."""


def convert(said: Mapping[str, Any]) -> dict[str, Any]:
    """What schema 1 says in a record, a run description or a manifest, in the names of schema 2.

    What is damaged stays as it is: the reader says so.
    """
    found: dict[str, Any] = rename_keys(dict(said))
    if isinstance(found.get("recipe"), Mapping):
        found["recipe"] = current_names(found["recipe"], warn=False)
    return found


def convert_settings(said: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1, whose strategy, task and quantization are settings of a recipe."""
    own = {key: said[key] for key in RECIPE if key in said}
    return {**convert(said), **current_names(own, warn=False)}


def rename_keys(value: Any) -> Any:
    """A copy of plain data with the keys of today."""
    if isinstance(value, Mapping):
        # the recipe is renamed by its paths, not by its keys
        return {
            RENAMED.get(key, key): inner if key == "recipe" else rename_keys(inner)
            for key, inner in value.items()
        }
    return [rename_keys(each) for each in value] if isinstance(value, list) else value
