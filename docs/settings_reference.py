"""Write `reference.md`: every setting of a recipe, from the JSON schema of `peftkit schema`."""

import json
from pathlib import Path
from typing import Any

from peftkit.config.schema import recipe_schema

FAMILIES = {"strategy": "Strategies", "task": "Tasks", "data": "Data", "quantize": "Quantization"}
HEAD = """# All settings

Every setting of a recipe with its default, generated from the JSON schema that
`peftkit schema` prints. A setting without a default has to be set; `null` means off,
or chosen as the description says.
"""


def write(to: Path) -> None:
    """Write the page to `to`, unless it is the same already."""
    page = reference()
    if not to.is_file() or to.read_text() != page:
        to.write_text(page)


def reference() -> str:
    """The page: the parts of a recipe, then each kind of each family."""
    found = recipe_schema()
    definitions = found["$defs"]
    parts = [HEAD, "## Recipe\n", table(found, skip=("training",))]
    parts += ["## training\n", table(definitions["Training"])]
    shown = {"Training"}
    for part, title in FAMILIES.items():
        parts.append(f"## {title}\n")
        names = [choice["$ref"].rpartition("/")[2] for choice in choices(found["properties"][part])]
        for name in names:
            shown.add(name)
            parts += kind(part, definitions[name])
    parts.append("## Nested settings\n")
    abstract = {"Strategy", "Task", "Data", "Quantization"}
    for name in sorted(definitions.keys() - shown - abstract):
        parts += [f"### {name}\n", summary(definitions[name]), table(definitions[name])]
    return "\n".join(part for part in parts if part) + "\n"


def choices(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The kinds of a part of a recipe."""
    return [choice for choice in part["anyOf"] if "$ref" in choice]


def kind(part: str, definition: dict[str, Any]) -> list[str]:
    """The section of one kind."""
    name = definition["properties"]["kind"]["const"]
    return [f"### {part}: {name}\n", summary(definition), table(definition, skip=("kind",))]


def summary(definition: dict[str, Any]) -> str:
    """What a definition says of itself, as one paragraph."""
    return one_line(definition.get("description", "")) + "\n"


def table(definition: dict[str, Any], skip: tuple[str, ...] = ()) -> str:
    """The settings of a definition with their defaults; empty where it has none."""
    rows = [
        f"| `{name}` | {default(field)} | {one_line(field.get('description', ''))} |"
        for name, field in definition["properties"].items()
        if name not in skip
    ]
    return (
        "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows, ""]) if rows else ""
    )


def default(field: dict[str, Any]) -> str:
    """The default of a setting, as it is written in a recipe; empty where it has none."""
    if "default" not in field:
        return ""
    text = json.dumps(field["default"])
    return f"`{text}`" if len(text) < 40 else "see below"


def one_line(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
