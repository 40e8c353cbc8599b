"""Settings and kinds as peftkit 0.1 called them, and as they are called now.

Recipes, overrides, records and run directories are read by either name, for one version more.
"""

from collections.abc import Mapping
from typing import Any

from peftkit.deprecation import warn_of

KINDS: Mapping[str, Mapping[str, str]] = {
    "task": {
        "classification": "text_classification",
        "generation": "text_generation",
        "instructions": "instruction_tuning",
        "language_modelling": "language_modeling",
        "relations": "relation_extraction",
        "summarisation": "summarization",
        "tagging": "token_classification",
    }
}
"""For each part of a recipe: the earlier name of a kind, and the one it has now."""
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "data": {"stand_in": "fallback"},
    "quantize": {"type": "quant_type", "double": "double_quant", "storage": "quant_storage"},
    "strategy": {
        "b_factor": "loraplus_lr_ratio",
        "hidden": "encoder_hidden_size",
        "reparametrised": "prefix_projection",
        "text": "init_text",
        "tokens": "num_virtual_tokens",
    },
    "task": {"prompting": "zero_shot", "untuned": "untrained_baseline"},
    "task.generate": {
        "beams": "num_beams",
        "judge": "grader",
        "judge_timeout": "grader_timeout",
        "shots": "few_shot_examples",
        "untuned": "untrained_baseline",
    },
    "task.zero_shot": {"shots": "few_shot_examples", "words": "label_words"},
    "training": {
        "clip": "max_grad_norm",
        "schedule": "lr_scheduler_type",
        "track": "report_to",
        "warmup": "warmup_ratio",
    },
}
"""For each mapping of a recipe, by its dotted path: the earlier name of a key, and the one it has
now."""
LISTS = {"strategy": "strategy", "strategy.parts": "strategy"}
"""Paths of lists whose items are each like the mapping at another path."""


def current_names(settings: Mapping[str, Any], warn: bool = True) -> dict[str, Any]:
    """`settings` of a recipe, nested, by the names they have now.

    With `warn`, each earlier name is reported by an `EarlierNameWarning`.
    """
    changed: list[tuple[str, str]] = []
    found: dict[str, Any] = renamed(settings, "", KINDS, SETTINGS, changed)
    if warn:
        for old, new in changed:
            warn_of(old, new)
    return found


def earlier_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of a recipe by the names of peftkit 0.1, which identify a run in its digest."""
    kinds = {part: {new: old for old, new in names.items()} for part, names in KINDS.items()}
    keys = {
        # the way back is found by what the mapping was called
        ".".join(earlier_path(path)): {new: old for old, new in names.items()}
        for path, names in SETTINGS.items()
    }
    found: dict[str, Any] = renamed(settings, "", kinds, keys, [])
    return found


def earlier_path(path: str) -> list[str]:
    """The steps of a path of today, as they were called."""
    steps = path.split(".")
    for index in range(1, len(steps)):
        above = ".".join(steps[:index])
        back = {new: old for old, new in SETTINGS.get(above, {}).items()}
        steps[index] = back.get(steps[index], steps[index])
    return steps


def current_path(path: str) -> str:
    """A setting's dotted path by the names of today."""
    steps = path.split(".")
    for index in range(1, len(steps)):
        above = ".".join(steps[:index])
        steps[index] = SETTINGS.get(above, {}).get(steps[index], steps[index])
    return ".".join(steps)


def renamed(
    value: Any,
    path: str,
    kinds: Mapping[str, Mapping[str, str]],
    keys: Mapping[str, Mapping[str, str]],
    changed: list[tuple[str, str]],
) -> Any:
    """A copy of `value`, at the dotted `path`, with the names changed; notes (old, new) of each."""
    if isinstance(value, str):
        return renamed_kind(value, path, kinds, changed)
    if isinstance(value, list) and path in LISTS:
        return [renamed(each, LISTS[path], kinds, keys, changed) for each in value]
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = keys.get(path, {}).get(key, key)
        if name != key:
            changed.append((f"{path}.{key}", f"{path}.{name}"))
        below = f"{path}.{name}" if path else str(name)
        found[name] = renamed(inner, below, kinds, keys, changed)
    return found


def renamed_kind(
    value: str,
    path: str,
    kinds: Mapping[str, Mapping[str, str]],
    changed: list[tuple[str, str]],
) -> str:
    """A kind's name, at `task` or `task.kind`, changed; any other text as it is."""
    part = path.removesuffix(".kind")
    name = kinds.get(part, {}).get(value, value)
    if name != value:
        changed.append((f"{part}={value}", f"{part}={name}"))
    return name
