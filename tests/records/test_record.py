"""A run's folder and its record: claimed once, written at once, read back the same."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.hub.source import Source
from peftkit.metrics.registry import Score
from peftkit.records.record import ParameterCount, RunRecord, read_record
from peftkit.records.run_dir import RunDir
from peftkit.storage.atomic_files import check_space, explain_disk_errors, folder_bytes, write_json


def source(name: str) -> Source:
    return Source(requested=name, used=name, origin="path", location="", identity=f"sha256:{name}")


MODEL, DATA = source("model"), source("data")


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.load("lora_tiny")


@pytest.fixture
def folder(tmp_path: Path, recipe: Recipe) -> RunDir:
    """A claimed folder, begun."""
    made = RunDir.of(tmp_path / "runs", recipe, MODEL, DATA)
    made.claim(recipe.digest(MODEL, DATA))
    made.begin(recipe, MODEL, DATA)
    return made


def record_of(recipe: Recipe, **more: Any) -> RunRecord:
    known: dict[str, Any] = {
        "name": recipe.name,
        "digest": recipe.digest(MODEL, DATA),
        "status": "finished",
        "recipe": recipe.settings(),
        "model": MODEL,
        "data": DATA,
        "rows": {"train": 3},
        "notes": [],
        "headline": "accuracy",
    }
    return RunRecord(**{**known, **more})


def test_a_record_is_read_back_as_it_was_written(folder: RunDir, recipe: Recipe) -> None:
    scores = {"accuracy": Score(value=0.5, low=0.4, high=0.6, n=10), "mcc": Score(value=None, n=10)}
    validation = {"step": 2, "score": None, "loss": 0.5}
    written = record_of(recipe, scores=scores, validation=validation)
    folder.finish(written)
    assert folder.record == written
    assert list(folder.record.scores) == ["accuracy", "mcc"]
    assert folder.finished
    assert RunDir.open(folder.path).record == written


def test_missing_is_null_and_nothing_unknown_gets_in(folder: RunDir, recipe: Recipe) -> None:
    folder.finish(record_of(recipe))
    said = json.loads((folder.path / "record.json").read_text())
    assert said["cost"] is None and said["proof"] is None and said["reason"] is None
    assert said["schema_version"] == 2
    with pytest.raises(ValueError, match="mood"):
        record_of(recipe, mood="good")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"schema_version": 1, "na', "is not a record"),
        ('{"schema_version": 99}', "has schema version 99, this peftkit reads 2"),
        ("{}", "has schema version None"),
    ],
)
def test_a_record_that_cannot_be_read_says_what_to_do(
    tmp_path: Path, content: str, what: str
) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(RunError, match=what):
        read_record(path)


def test_a_folder_is_named_by_recipe_and_content(tmp_path: Path, recipe: Recipe) -> None:
    name = RunDir.of(tmp_path, recipe, MODEL, DATA).path.name
    assert name == f"lora_tiny-{recipe.digest(MODEL, DATA)[:8]}"
    other = recipe.but(training__seed=1)
    assert RunDir.of(tmp_path, other, MODEL, DATA).path.name != name
    assert RunDir.of(tmp_path, recipe, source("another"), DATA).path.name != name
    moved = MODEL.model_copy(update={"location": "/elsewhere", "origin": "hub"})
    assert RunDir.of(tmp_path, recipe, moved, DATA).path.name == name
    stand_in = DATA.model_copy(update={"is_fallback": True})
    assert RunDir.of(tmp_path, recipe, MODEL, stand_in).path.name.startswith("lora_tiny-standin")


def test_again_is_the_first_that_is_not_finished(tmp_path: Path, recipe: Recipe) -> None:
    def named(again: bool) -> RunDir:
        return RunDir.of(tmp_path, recipe, MODEL, DATA, again)

    first = named(True)
    assert first.path == named(False).path
    first.path.mkdir()
    first.finish(record_of(recipe))
    second = named(True)
    assert second.path.name == f"{first.path.name}-2"
    second.path.mkdir()
    second.finish(record_of(recipe, status="failed", reason="it was too hot"))
    assert named(True).path == second.path
    second.finish(record_of(recipe))
    assert named(True).path.name.endswith("-3")
    assert named(False).path == first.path


def test_a_claimed_folder_is_taken_until_it_is_released(folder: RunDir, recipe: Recipe) -> None:
    digest = recipe.digest(MODEL, DATA)
    other = RunDir(folder.path)
    with pytest.raises(RunError, match="another process is using this run"):
        other.claim(digest)
    folder.release()
    other.claim(digest)
    other.release()


def test_a_refused_claim_lets_the_folder_go(folder: RunDir) -> None:
    folder.release()
    with pytest.raises(RunError, match="belongs to another recipe - move it away"):
        RunDir(folder.path).claim("0" * 64)
    RunDir(folder.path).claim(folder.description()["digest"])


def test_what_is_described_is_kept_over_a_second_beginning(folder: RunDir, recipe: Recipe) -> None:
    folder.describe(micro_batch_size=4)
    folder.begin(recipe, MODEL, DATA)
    assert folder.description()["micro_batch_size"] == 4
    assert folder.description()["model"] == MODEL.model_dump()
    assert folder.recipe == recipe


def test_only_a_finished_run_can_be_opened(folder: RunDir, recipe: Recipe) -> None:
    with pytest.raises(RunError, match="it has not finished"):
        RunDir.open(folder.path)
    with pytest.raises(RunError, match="there is no such directory"):
        RunDir.open(folder.path / "none")
    folder.finish(record_of(recipe, status="failed", reason="the loss is nan"))
    assert not folder.finished
    with pytest.raises(RunError, match="it failed: the loss is nan"):
        RunDir.open(folder.path)


def test_log_lines_of_steps_to_be_done_again_are_dropped(folder: RunDir) -> None:
    for step in range(1, 7):
        folder.log({"step": step, "loss": 0.1 * step})
    folder.log({"step": 4, "eval_score": None})
    with open(folder.path / "log.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # a kill in the middle of a line
    assert len(folder.logged()) == 7
    folder.forget_after(4)
    assert [line["step"] for line in folder.logged()] == [1, 2, 3, 4, 4]
    folder.log({"step": 5, "loss": 0.5})
    assert folder.logged()[-1] == {"step": 5, "loss": 0.5}


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["facts.json"]


def test_too_little_room_is_refused_with_both_numbers(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(RunError, match=r"GB free, the run may need 1000000000\.0 GB"):
        check_space(tmp_path, 10**18)


def test_a_disk_that_takes_nothing_is_a_users_error_and_a_bug_is_not(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"x\.json: cannot be written \(No space left"):  # noqa: SIM117
        with explain_disk_errors(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device", "x.json")
    with pytest.raises(FileNotFoundError), explain_disk_errors(tmp_path):
        (tmp_path / "none" / "x").write_text("")


def test_a_folders_size_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"123")
    assert folder_bytes(tmp_path) == 8


def test_the_trainable_share_is_of_all_weights() -> None:
    assert ParameterCount(trainable=5, total=20, base=10, head=5, adapter=5).share == 0.25
