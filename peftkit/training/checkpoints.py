"""Checkpoints: trained weights as safetensors, and which checkpoints on disk are complete."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from peftkit.errors import RunError
from peftkit.storage.atomic_files import sync_to_disk, write_json
from peftkit.strategies.base import restore, trainable

MANIFEST = "whole.json"
"""The last file written to a checkpoint: the sizes of the others, and the counts of the run."""
TRAINED = "trained.safetensors"
"""The file of the trained weights in a checkpoint."""


def save_trained(model: nn.Module, path: Path) -> None:
    """Write the trainable parameters to `path`, atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({n: p.detach().contiguous() for n, p in trainable(model).items()}, partial)
    partial.replace(path)


def load_trained(model: nn.Module, path: Path) -> None:
    """Load the parameters saved at `path` into `model`."""
    from safetensors.torch import load_file

    restore(model, load_file(path))


def load_optimizer_state(path: Path) -> Mapping[str, Any]:
    """Load what `torch.save` wrote to `path`, with `weights_only=True`: no pickled code runs."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def unreadable_error(checkpoint: Path, error: Exception) -> RunError:
    """The `RunError` for a complete checkpoint that cannot be read."""
    message = str(error).strip().partition("\n")[0]
    return RunError(
        f"{checkpoint}: cannot be read ({message}) - remove that directory to resume without it"
    )


def mark_complete(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Mark `checkpoint` as complete, with `facts` to resume from."""
    files = [p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != MANIFEST]
    for path in files:
        sync_to_disk(path)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_json(checkpoint / MANIFEST, {"files": sizes, **facts})


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, with the facts given to `mark_complete`."""
    return json.loads((checkpoint / MANIFEST).read_text())  # type: ignore[no-any-return]


def latest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The latest complete checkpoint in `folder`, if any; incomplete ones after it are reported to
    `say`."""
    incomplete: list[Path] = []
    for checkpoint in sorted(list_checkpoints(folder), key=step_of, reverse=True):
        if is_complete(checkpoint):
            for path in incomplete:
                say(f"{path} is incomplete: {checkpoint.name} is used")
            return checkpoint
        incomplete.append(checkpoint)
    for path in incomplete:
        say(f"{path} is incomplete, and there is no other: training starts from the beginning")
    return None


def remove_checkpoints_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps: incomplete ones would count toward `save_total_limit`."""
    for checkpoint in list_checkpoints(folder):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, complete or not."""
    found = folder.glob("checkpoint-*")
    return [p for p in found if p.name.removeprefix("checkpoint-").isdigit()]


def best_weights_path(folder: Path, step: int) -> Path:
    """The path of the weights of the best evaluation, after `step`."""
    return folder / f"best-{step}.safetensors"


def remove_other_best_weights(folder: Path, step: int) -> None:
    """Remove best weights of steps other than `step`, once a checkpoint records that it was
    better."""
    for path in folder.glob("best-*.safetensors"):
        if path != best_weights_path(folder, step):
            path.unlink()


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the manifest exists with its size."""
    try:
        files = read_manifest(checkpoint)["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
        for name, size in files.items()
    )
