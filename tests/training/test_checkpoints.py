"""A checkpoint counts if it is complete, and contains tensors and plain values only."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from peftkit.errors import RunError
from peftkit.training.checkpoints import (
    best_weights_path,
    is_complete,
    latest_checkpoint,
    load_optimizer_state,
    load_trained,
    mark_complete,
    read_manifest,
    remove_checkpoints_after,
    remove_other_best_weights,
    save_trained,
    step_of,
)


def checkpoint(folder: Path, step: int) -> Path:
    """A complete checkpoint."""
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"optimizer")
    (path / "shards" / "0").write_bytes(b"of this rank")
    mark_complete(path, {"done": False, "seconds": 1.5})
    return path


def test_only_what_trains_is_saved_and_put_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2).requires_grad_(False))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_trained(model, tmp_path / "new" / "trained.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["trained.safetensors"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    load_trained(model, tmp_path / "new" / "trained.safetensors")
    for name, parameter in model.named_parameters():
        frozen = name.startswith("1.")
        assert torch.equal(parameter, before[name] + (1.0 if frozen else 0.0))


def test_another_recipes_weights_are_refused(tmp_path: Path) -> None:
    save_trained(nn.Linear(2, 2), tmp_path / "trained.safetensors")
    with pytest.raises(RunError, match="belong to another recipe"):
        load_trained(nn.Linear(2, 2, bias=False), tmp_path / "trained.safetensors")


def test_the_newest_whole_checkpoint_is_found_by_its_number(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-last").mkdir()
    messages: list[str] = []
    found = latest_checkpoint(tmp_path, messages.append)
    assert found is not None and step_of(found) == 100
    assert read_manifest(found)["seconds"] == 1.5
    assert messages == []
    assert latest_checkpoint(tmp_path / "none", messages.append) is None


@pytest.mark.parametrize("harm", ["shorter", "longer", "missing", "unmarked", "half a mark"])
def test_a_checkpoint_that_lost_anything_is_passed_over_and_said(tmp_path: Path, harm: str) -> None:
    checkpoint(tmp_path, 4)
    path = checkpoint(tmp_path, 8)
    optimizer, mark = path / "optimizer.pt", path / "whole.json"
    if harm == "shorter":
        os.truncate(optimizer, 3)
    elif harm == "longer":
        optimizer.write_bytes(b"optimizer, and more")
    elif harm == "missing":
        (path / "shards" / "0").unlink()
    elif harm == "unmarked":
        mark.unlink()
    else:
        os.truncate(mark, 20)
    assert not is_complete(path)
    messages: list[str] = []
    found = latest_checkpoint(tmp_path, messages.append)
    assert found is not None and step_of(found) == 4
    assert messages == [f"{path} is incomplete: checkpoint-4 is used"]


def test_without_a_whole_one_that_is_said_too(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 8) / "whole.json").unlink()
    messages: list[str] = []
    assert latest_checkpoint(tmp_path, messages.append) is None
    assert "training starts from the beginning" in messages[0]


def test_what_is_later_than_the_resumed_step_is_forgotten(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        checkpoint(tmp_path, step)
    remove_checkpoints_after(tmp_path, 8)
    assert sorted(step_of(p) for p in tmp_path.glob("checkpoint-*")) == [4, 8]


def test_the_best_weights_of_one_step_are_kept(tmp_path: Path) -> None:
    for step in (2, 4):
        save_trained(nn.Linear(2, 2), best_weights_path(tmp_path, step))
    remove_other_best_weights(tmp_path, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["best-4.safetensors"]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch.save({"state": Evil(tmp_path / "evil")}, tmp_path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_optimizer_state(tmp_path / "optimizer.pt")
    assert not (tmp_path / "evil").exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    with pytest.raises(pickle.UnpicklingError):
        load_optimizer_state(tmp_path / "plain.pt")
    assert not (tmp_path / "evil").exists()
