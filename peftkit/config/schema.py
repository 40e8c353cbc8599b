"""The JSON schema of recipe files, for completion and checks in editors."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from peftkit.config.recipe import PARTS, Recipe
from peftkit.registry import Component

BASE = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "Recipes to build on: a name or a list of names; later ones win.",
}


def recipe_schema() -> dict[str, Any]:
    """Every setting of every registered component, with its documentation."""
    families = {k: kind for k, kind in PARTS.items() if issubclass(kind, Component)}
    kinds = {key: family.kinds() for key, family in families.items()}
    classes: list[type[BaseModel]] = [
        Recipe,
        *(cls for found in kinds.values() for cls in found.values()),
    ]
    names, whole = models_json_schema(
        [(cls, "validation") for cls in classes], ref_template="#/$defs/{model}"
    )
    definitions = whole["$defs"]
    schema = definitions.pop("Recipe")
    for key, found in kinds.items():
        references = [names[cls, "validation"] for cls in found.values()]
        about = schema["properties"][key].get("description", "")
        choices = [{"enum": sorted({*found, *families[key].all_aliases()})}, *references]
        if key == "strategy":
            choices.append({"type": "array", "minItems": 2})
        schema["properties"][key] = {"anyOf": choices, "description": about}
    schema["properties"]["base"] = BASE
    for part in (schema, *definitions.values()):
        part.pop("required", None)  # a base may hold it
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "peftkit recipe",
        "$defs": definitions,
    }
