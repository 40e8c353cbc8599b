"""Checkpoints: what trains as safetensors, and which checkpoints on disk are whole."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from peftkit.errors import RunError
from peftkit.storage.atomic_files import settle, write_json
from peftkit.strategies.base import restore, trainable

WHOLE = "whole.json"
"""Written last into a checkpoint: the sizes of its files."""
TRAINED = "trained.safetensors"
"""The trained weights in a checkpoint."""


def save_trained(model: nn.Module, path: Path) -> None:
    """Write the trainable parameters to `path` at once."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    save_file({n: p.detach().contiguous() for n, p in trainable(model).items()}, beside)
    beside.replace(path)


def load_trained(model: nn.Module, path: Path) -> None:
    """Put the parameters saved at `path` in their places."""
    from safetensors.torch import load_file

    restore(model, load_file(path))


def load_state(path: Path) -> Mapping[str, Any]:
    """What `torch.save` wrote to `path`: tensors and plain values only, no pickled code is run."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def unreadable(checkpoint: Path, error: Exception) -> RunError:
    """What to say of a whole checkpoint that still cannot be read."""
    told = str(error).strip().partition("\n")[0]
    return RunError(
        f"{checkpoint}: cannot be read ({told}) - remove that folder to go on without it"
    )


def mark_complete(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Say that every file of `checkpoint` is written, and add `facts` to go on from."""
    files = [p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != WHOLE]
    for path in files:
        settle(path)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_json(checkpoint / WHOLE, {"files": sizes, **facts})


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What `mark_complete` was given."""
    return json.loads((checkpoint / WHOLE).read_text())  # type: ignore[no-any-return]


def latest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint in `folder`; `say` is told of newer ones that were cut short."""
    cut: list[Path] = []
    for checkpoint in sorted(numbered(folder), key=step_of, reverse=True):
        if is_whole(checkpoint):
            for path in cut:
                say(f"{path} was cut short: {checkpoint.name} is used")
            return checkpoint
        cut.append(checkpoint)
    for path in cut:
        say(f"{path} was cut short, and there is no other: training starts from the beginning")
    return None


def forget_checkpoints_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps: left half-written, they would count among those kept."""
    for checkpoint in numbered(folder):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)


def numbered(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not."""
    found = folder.glob("checkpoint-*")
    return [p for p in found if p.name.removeprefix("checkpoint-").isdigit()]


def best_weights(folder: Path, step: int) -> Path:
    """Where the weights of the best evaluation, which was after `step`, are kept."""
    return folder / f"best-{step}.safetensors"


def forget_best_but(folder: Path, step: int) -> None:
    """Remove best weights of other steps, once a checkpoint knows that `step` was better."""
    for path in folder.glob("best-*.safetensors"):
        if path != best_weights(folder, step):
            path.unlink()


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is there at the size it was written with."""
    try:
        files = facts_of(checkpoint)["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
        for name, size in files.items()
    )
