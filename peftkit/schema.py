"""The JSON schema of recipe files, for completion and checks in editors."""

from typing import Any

from pydantic.json_schema import models_json_schema

from peftkit.recipe import PARTS, Recipe
from peftkit.registry import Component


def recipe_schema() -> dict[str, Any]:
    """Every setting of every registered component, with its documentation."""
    families = {k: kind for k, kind in PARTS.items() if issubclass(kind, Component)}
    kinds = {k: list(family.kinds().values()) for k, family in families.items()}
    every = [(cls, "validation") for found in kinds.values() for cls in found]
    names, definitions = models_json_schema(
        [*every, (Recipe, "validation")], ref_template="#/$defs/{model}"  # type: ignore[list-item]
    )
    schema = definitions["$defs"].pop("Recipe")
    for key, found in kinds.items():
        references = [names[cls, "validation"] for cls in found]  # type: ignore[index]
        words = {"enum": list(families[key].kinds())}
        schema["properties"][key] = {"anyOf": [words, *references]}
    several = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    schema["properties"]["base"] = several
    schema.pop("required", None)  # a base may hold them
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "peftkit recipe",
        **schema,
        "$defs": definitions["$defs"],
    }
