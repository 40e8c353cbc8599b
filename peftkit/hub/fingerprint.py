"""Fingerprint: what makes a base model another one, read from its files without loading it."""

import hashlib
import json
from pathlib import Path
from typing import Any

VOLATILE = {
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys of a configuration that say nothing of the base's own weights."""


def base_fingerprint(folder: Path) -> str:
    """sha256 (hex) of a model's configuration and of its tensors' names and shapes.

    The same for two trainings of one architecture; what an adapter must fit.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = {"config": keep_stable_keys(config), "shapes": tensor_shapes(folder)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def keep_stable_keys(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration shapes the base: not its head's labels, dropout or file's history."""
    return {
        key: value
        for key, value in config.items()
        if not (key in VOLATILE or key.startswith("_") or "drop" in key)
    }


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor in the folder's safetensors files, by name."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                shapes[name] = list(file.get_slice(name).get_shape())
    return shapes
