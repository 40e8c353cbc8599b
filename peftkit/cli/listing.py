"""Table rows for `peftkit list` and `peftkit show`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.config.composition import Composition, compose, flat, recipe_names
from peftkit.config.recipe import PARTS, Recipe
from peftkit.errors import PeftkitError
from peftkit.registry import Component, Settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

FAMILIES = {"strategies": "strategy", "tasks": "task", "data": "data", "quantization": "quantize"}
"""The names of the families in `peftkit list`, each with its key in a recipe."""


def listing(family: str) -> list[dict[str, str]]:
    """The members of a family: name, description, and settings or file."""
    if family == "recipes":
        return [
            {"name": name, "about": about_recipe(path), "file": str(path)}
            for name, path in recipe_names().items()
        ]
    if family == "metrics":
        from peftkit.metrics.registry import METRICS

        return [{"name": name, "about": row.description} for name, row in METRICS.items()]
    if family == "formats":
        from peftkit.readers.base import readers

        found = readers().items()
        return [{"name": suffix, "about": about(type(reader))} for suffix, reader in found]
    if family == "charts":
        from peftkit.reporting.render.chart import registered_charts

        charts = registered_charts().items()
        return [{"name": name, "about": about(chart.function)} for name, chart in charts]
    root = PARTS[FAMILIES[family]]
    assert issubclass(root, Component)
    rows = [
        {"name": kind, "about": about(cls), "settings": settings_of(cls)}
        for kind, cls in root.kinds().items()
    ]
    for alias, meant in root.all_aliases().items():
        rows.append({"name": alias, "about": f"short for {format_part(meant)}", "settings": ""})
    return sorted(rows, key=lambda row: row["name"])


def about(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").split("\n")[0]


def about_recipe(path: Path) -> str:
    """A recipe's description, else its strategy, model and data; for an invalid one, the error."""
    try:
        settings = compose(str(path)).settings
    except PeftkitError as error:
        return str(error).partition("\n")[0]
    if "description" in settings:
        return str(settings["description"])
    strategy = format_part(settings.get("strategy"))
    if (quantized := kind_of(settings.get("quantize"))) not in {"", "none"}:
        strategy += f" on {quantized}"
    data = settings.get("data")
    place = data.get("path") or data.get("name") or kind_of(data) if isinstance(data, dict) else ""
    return f"{strategy}; {settings.get('model', 'no model')}; {place or kind_of(data)}"


def format_part(part: Any) -> str:
    """A part of a recipe on one line: its kind and its settings."""
    rest = part.items() if isinstance(part, dict) else []
    return " ".join([kind_of(part), *(f"{k}={v}" for k, v in rest if k != "kind")])


def kind_of(part: Any) -> str:
    """The kind of a part of a recipe, or an empty string."""
    return str(part.get("kind", "")) if isinstance(part, dict) else str(part or "")


def settings_of(cls: type[Component]) -> str:
    """A component's settings on one line: the required ones, then those with defaults."""
    fields = {name: field for name, field in cls.model_fields.items() if name != "kind"}
    required = [f"{name}=..." for name, field in fields.items() if field.is_required()]
    return " ".join(
        required + [f"{n}={default_of(f)}" for n, f in fields.items() if not f.is_required()]
    )


def default_of(field: "FieldInfo") -> str:
    """A setting's default as YAML on one line."""
    value = field.get_default(call_default_factory=True)
    return json.dumps(value.to_dict() if isinstance(value, Settings) else value)


def setting_rows(recipe: Recipe, composition: Composition) -> list[dict[str, str]]:
    """Each setting of a recipe with its value and where it was set."""
    return [
        {"setting": path, "value": json.dumps(value), "set by": source(recipe, composition, path)}
        for path, value in flat(recipe.settings())
    ]


def source(recipe: Recipe, composition: Composition, path: str) -> str:
    """Where the value at `path` was set; `strategy: lora` sets `strategy.kind`."""
    known = composition.sources
    found = known.get(path) or known.get(path.removesuffix(".kind"))
    if found is None and path == "training.lr":
        return f"default of {recipe.strategy.kind}: {recipe.lr()}"
    return found or "default"
