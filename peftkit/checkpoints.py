"""Checkpoints: what trains as safetensors, and which checkpoints on disk are whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from peftkit.record import write_json
from peftkit.strategies import restore, trainable

WHOLE = "whole.json"
"""Written last into a checkpoint: the sizes of its files."""


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


def mark_complete(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Say that every file of `checkpoint` is written, and add `facts` to go on from."""
    sizes = {p.name: p.stat().st_size for p in sorted(checkpoint.iterdir()) if p.name != WHOLE}
    write_json(checkpoint / WHOLE, {"files": sizes, **facts})


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What `mark_complete` was given."""
    return json.loads((checkpoint / WHOLE).read_text())  # type: ignore[no-any-return]


def latest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint in `folder`; `say` is told of newer ones that were cut short."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        if is_whole(checkpoint):
            return checkpoint
        say(f"{checkpoint} was cut short: the one before it is used")
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is there at the size it was written with."""
    if not (checkpoint / WHOLE).is_file():
        return False
    try:
        files = facts_of(checkpoint)["files"]
    except ValueError:
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
        for name, size in files.items()
    )
