"""The artifact: what was trained, with a manifest of its files' sha256 and of its base model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.hub.fingerprint import base_fingerprint
from peftkit.hub.source import Source, sha256_of
from peftkit.models.architectures import unwrap_model
from peftkit.records.conversion import convert_settings
from peftkit.storage.atomic_files import write_json

MANIFEST = "artifact.json"
"""Written last into an artifact."""
EARLIER_MANIFEST = "artefact.json"
FORMAT = 2
"""1: peftkit 0.1, whose manifests are converted when they are read."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def write_config(folder: Path, module: Any, fitted_state: Mapping[str, Any] | None = None) -> None:
    """Write the adapted model's configuration to `folder`, with the model's class and the task's
    fitted state, for code that loads it without peftkit."""
    model = unwrap_model(module)
    model.config.architectures = [type(model).__name__]
    if fitted_state:
        model.config.peftkit_fitted_state = dict(fitted_state)
    model.config.save_pretrained(folder)


def write_manifest(folder: Path, recipe: Recipe, base: Source, names: tuple[str, ...]) -> None:
    """Write what belongs to the artifact in `folder`: its files, its base, how it is attached."""
    name_base(folder, base)
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "strategy": recipe.strategy.to_dict(),
            "task": recipe.task.to_dict(),
            "quantize": recipe.quantize.to_dict(),
            "labels": names,
            "fitted_state": dict(recipe.task.fitted_state),
            "base": {
                **base.model_dump(include={"requested", "used", "identity", "note"}),
                "fingerprint": base_fingerprint(Path(base.location)),
            },
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                for path in files
            },
        },
    )


def name_base(folder: Path, base: Source) -> None:
    """Name the base model in PEFT's configuration as on the Hub, not by a local directory."""
    path = folder / "adapter_config.json"
    if path.is_file() and base.origin in ("hub", "cache", "wheel"):
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**config, "base_model_name_or_path": base.used})


def check(folder: Path, base: Source) -> dict[str, Any]:
    """The manifest of the artifact in `folder`, after its files and `base` have been checked.

    Raises `RunError` for a pickle, a file that is missing, truncated or changed, or another base
    model.
    """
    manifest = read_manifest(folder)
    if wrong := [
        w for name, known in manifest["files"].items() if (w := fault(folder / name, known))
    ]:
        raise RunError(
            f"{folder}: the artifact is not what was saved: {'; '.join(wrong)} - take it from a "
            "copy, or train again"
        )
    was = manifest["base"]
    if base_fingerprint(Path(base.location)) != was["fingerprint"]:
        raise RunError(
            f"{folder}: was trained on {was['used']}, whose configuration or tensors' shapes are "
            f"not those of {base.used} - load it on {was['used']}"
        )
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the artifact in `folder`: its files, its base model, how it is attached."""
    refuse_pickles(folder)
    path = manifest_path(folder)
    if not path.is_file():
        there = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        hint = (
            f"there are {', '.join(sorted(there))}"
            if there
            else "the directory is empty or missing"
        )
        raise RunError(
            f"{folder}: is no artifact of peftkit: {MANIFEST} is missing ({hint}) - "
            "name a run whose artifact is whole, or train again"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}) - take it from a copy") from None
    if manifest.get("format") == 1:
        manifest = {**convert_settings(manifest), "format": FORMAT}
    if manifest.get("format") != FORMAT:
        raise RunError(
            f"{path}: has format {manifest.get('format')}, this peftkit reads {FORMAT} - use the "
            "peftkit that wrote it"
        )
    return manifest


def manifest_path(folder: Path) -> Path:
    """Where the manifest of an artifact in `folder` is, or would be."""
    earlier = folder / EARLIER_MANIFEST
    return earlier if earlier.is_file() else folder / MANIFEST


def refuse_pickles(folder: Path) -> None:
    """Raise `RunError` if the weights are stored as a pickle only, which can run code when read."""
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
    if pickles and not list(folder.glob("*.safetensors")):
        raise RunError(
            f"{folder}: holds its weights as a pickle ({', '.join(pickles)}), which can run code - "
            "convert it if you trust it: safetensors.torch.save_file("
            f"torch.load('{pickles[0]}', weights_only=True), "
            f"'{Path(pickles[0]).stem}.safetensors')"
        )


def fault(path: Path, known: Mapping[str, Any]) -> str | None:
    """What is wrong with a file of an artifact; None if nothing is."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != known["bytes"]:
        return f"{path.name} has {size} bytes, not {known['bytes']}"
    return None if sha256_of(path) == known["sha256"] else f"{path.name} was changed"
