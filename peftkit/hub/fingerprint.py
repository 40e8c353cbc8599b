"""Fingerprints of base models, computed from their files without loading them."""

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
"""Keys of a configuration that do not affect the base's weights."""


def base_fingerprint(folder: Path) -> str:
    """Return the sha256 (hex) of a model's configuration and of its tensors' names and shapes.

    It is the same for two trainings of one architecture, and identifies what an adapter fits.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    identity = {"config": keep_stable_keys(config), "shapes": tensor_shapes(folder)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def keep_stable_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration that shape the base, without labels, dropout and
    metadata."""
    return {
        key: value
        for key, value in config.items()
        if not (key in VOLATILE or key.startswith("_") or "drop" in key)
    }


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in the folder's safetensors files, by name."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                shapes[name] = list(file.get_slice(name).get_shape())
    return shapes
