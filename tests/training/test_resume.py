"""An interrupted and resumed run ends exactly, bit for bit, as an uninterrupted one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.run_processes import (
    ENVIRONMENT,
    SMALL,
    Zygote,
    command,
    killed_at,
    logged,
    losses,
    only_run,
    record,
    result,
    same,
    tensors,
    words,
)

pytestmark = pytest.mark.slow

DROPOUT = ("training.dropout=0.1", "training.micro_batch_size=4", "training.save_steps=3")
STRATEGIES = {
    "lora": ("strategy.dropout=0.1", *DROPOUT),
    "full": ("strategy=full", "training.lr=0.001", *DROPOUT),
}
MIDST_OF_EPOCHS = (5, 14)
"""Steps after a checkpoint, in the first and in the second epoch of ten steps."""


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with three checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    assert zygote.run(folder, "training.save_steps=4").code == 0
    return folder


@pytest.fixture(scope="module")
def whole_on_two(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    folder = tmp_path_factory.mktemp("whole-on-two")
    assert set(zygote.run(folder, "training.save_steps=4", ranks=2).codes) == {0}
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("order", ["length_grouped", "random"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_killed_in_both_epochs_ends_as_one_that_was_not(
    zygote: Zygote, tmp_path: Path, strategy: str, order: str, ranks: int
) -> None:
    settings = (*STRATEGIES[strategy], f"training.order={order}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    uninterrupted = zygote.start(whole, *settings, ranks=ranks)
    for step in MIDST_OF_EPOCHS:
        ended = zygote.run(killed, *settings, ranks=ranks, before=killed_at(step))
        assert set(ended.codes) == {-signal.SIGKILL}, ended.said
        assert not (only_run(killed) / "record.json").exists()
    ended = zygote.run(killed, *settings, ranks=ranks)
    assert set(ended.codes) == {0}, ended.said
    assert "resuming at step 12" in ended.said
    assert set(uninterrupted.wait().codes) == {0}
    assert result(killed) == result(whole)
    assert record(killed)["exact"]


def test_a_random_state_that_is_not_restored_would_be_seen(zygote: Zygote, tmp_path: Path) -> None:
    settings = (*STRATEGIES["lora"], "training.order=random")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    forgetful = (
        "from peftkit.training.trainer import PeftTrainer\n"
        "PeftTrainer._load_rng_state = lambda *_: None\n"
    )
    zygote.run(whole, *settings)
    zygote.run(killed, *settings, before=killed_at(5))
    assert zygote.run(killed, *settings, before=forgetful).code == 0
    assert not same(whole, killed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_saves_says_so_and_the_same_command_goes_on(
    zygote: Zygote, tmp_path: Path, whole: Path, whole_on_two: Path, number: int, ranks: int
) -> None:
    settings = ("training.save_steps=4",)
    before = f"at_step(6, {int(number)})"
    if ranks == 2:  # only the second rank is told
        before = f"import os\nif os.environ['RANK'] == '1': {before}"
    ended = zygote.run(tmp_path, *settings, ranks=ranks, before=before)
    assert ended.codes == [128 + number] * ranks, ended.said
    assert "stopped at step 6 of 20; a checkpoint is in" in words(ended.said)
    assert ended.said.count("run the same command to resume") == 1
    assert "the same command" not in ended.others
    assert "Traceback" not in ended.said + ended.others
    assert set(zygote.run(tmp_path, *settings, ranks=ranks).codes) == {0}
    assert same(tmp_path, whole if ranks == 1 else whole_on_two)


def test_a_signal_at_the_last_step_leaves_only_the_scoring(
    zygote: Zygote, tmp_path: Path, whole: Path
) -> None:
    ended = zygote.run(
        tmp_path, "training.save_steps=4", before=f"at_step(20, {int(signal.SIGTERM)})"
    )
    assert ended.code == 128 + signal.SIGTERM
    ended = zygote.run(tmp_path, "training.save_steps=4")
    assert "only evaluation is left" in ended.said
    assert same(tmp_path, whole)


@pytest.mark.parametrize("place", ["RunPipeline._save_artifact", "RunDir.finish"])
def test_killed_between_the_last_step_and_the_record_it_is_only_scored(
    zygote: Zygote, tmp_path: Path, whole: Path, place: str
) -> None:
    before = (
        "import os, peftkit.runs.pipeline\n"
        f"peftkit.runs.pipeline.{place} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = zygote.run(tmp_path, "training.save_steps=4", before=before)
    assert ended.code == -signal.SIGKILL
    no_steps = (
        "from peftkit.training.trainer import PeftTrainer\nPeftTrainer.training_step = None\n"
    )
    ended = zygote.run(tmp_path, "training.save_steps=4", before=no_steps)
    assert ended.code == 0, ended.said
    assert "only evaluation is left" in ended.said
    assert same(tmp_path, whole)
    cost, all_at_once = record(tmp_path)["cost"], record(whole)["cost"]
    assert cost["tokens"] == all_at_once["tokens"]
    assert cost["total_seconds"] > cost["train_seconds"] + cost["validate_seconds"]
    assert cost["train_seconds"] > 0 and cost["validate_seconds"] > 0


def test_killed_from_outside_while_it_works(zygote: Zygote, tmp_path: Path, whole: Path) -> None:
    """`peftkit train` in a process of its own, killed by its parent."""
    arguments = ["-m", "peftkit.cli", "train", "lora_tiny", *SMALL, "training.save_steps=4"]
    started = subprocess.Popen(
        [sys.executable, *arguments], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(losses(tmp_path)) >= 6)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    assert len(losses(tmp_path)) < 20
    ended = zygote.run(tmp_path, "training.save_steps=4")
    assert ended.code == 0
    assert "resuming at step" in ended.said
    assert same(tmp_path, whole)


def wait_for(true: object, seconds: float = 90) -> None:
    """Wait until `true()`, which may fail until then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():  # type: ignore[operator]
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise TimeoutError


def test_a_checkpoint_cut_short_is_left_out_and_said(
    zygote: Zygote, tmp_path: Path, whole: Path
) -> None:
    settings = ("training.save_steps=4",)
    zygote.run(tmp_path, *settings, before=killed_at(10))
    checkpoints = only_run(tmp_path) / "checkpoints"
    twin = tmp_path / "twin"
    shutil.copytree(tmp_path / "runs", twin / "runs")
    optimizer = checkpoints / "checkpoint-8" / "optimizer.pt"
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    (only_run(twin) / "checkpoints" / "checkpoint-8" / "whole.json").unlink()
    for folder in (tmp_path, twin):
        ended = zygote.run(folder, *settings)
        assert ended.code == 0, ended.said
        assert "checkpoint-8 is incomplete: checkpoint-4 is used" in ended.said
        assert "resuming at step 4" in ended.said
        assert same(folder, whole)


def test_without_any_whole_checkpoint_it_begins_anew(
    zygote: Zygote, tmp_path: Path, whole: Path
) -> None:
    zygote.run(tmp_path, "training.save_steps=4", before=killed_at(7))
    (only_run(tmp_path) / "checkpoints" / "checkpoint-4" / "whole.json").unlink()
    ended = zygote.run(tmp_path, "training.save_steps=4")
    assert "training starts from the beginning" in ended.said
    assert same(tmp_path, whole)


def test_a_pickle_in_a_checkpoint_is_refused_not_run(zygote: Zygote, tmp_path: Path) -> None:
    zygote.run(tmp_path, "training.save_steps=4", before=killed_at(6))
    checkpoint = only_run(tmp_path) / "checkpoints" / "checkpoint-4"
    payload = (
        "import os, torch\n"
        "class Evil:\n"
        "    def __reduce__(self):\n"
        f"        return os.mkdir, ({str(tmp_path / 'evil')!r},)\n"
        "from peftkit.training.checkpoints import read_manifest, mark_complete\n"
        "from pathlib import Path\n"
        f"checkpoint = Path({str(checkpoint)!r})\n"
        "facts = read_manifest(checkpoint)\n"
        "torch.save({'state': Evil()}, checkpoint / NAME)\n"
        "facts.pop('files')\n"
        "mark_complete(checkpoint, facts)\n"
    )
    for name in ("optimizer.pt", "rng_state.pth"):
        kept = (checkpoint / name).read_bytes()
        ended = zygote.run(tmp_path, "training.save_steps=4", before=f"NAME = {name!r}\n{payload}")
        assert ended.code == 2, ended.said
        assert "checkpoint-4: cannot be read" in ended.said
        assert "Traceback" not in ended.said
        assert not (tmp_path / "evil").exists()
        (checkpoint / name).write_bytes(kept)


def test_a_finished_run_returns_at_once_and_imports_no_torch(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    before = record(tmp_path)
    code = (
        "import sys\nfrom peftkit.cli.commands import run_recipe\n"
        f"code = run_recipe({['recipe=lora_tiny', *SMALL, 'training.save_steps=4']!r})\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)\n"
        "sys.exit(code)"
    )
    ended = command(tmp_path, "-c", code)
    assert ended.code == 0
    assert "is finished: nothing to do" in ended.said
    assert "accuracy" in ended.said
    assert "False" in ended.said
    assert record(tmp_path) == before


def test_again_runs_beside_the_finished_one(zygote: Zygote, tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    first = only_run(tmp_path)
    assert zygote.run(tmp_path, "training.save_steps=4", "--rerun").code == 0
    second = first.with_name(f"{first.name}-2")
    assert (second / "predictions.jsonl").read_text() == (first / "predictions.jsonl").read_text()


def test_a_failed_run_says_why_in_its_record_and_is_tried_again(
    zygote: Zygote, tmp_path: Path
) -> None:
    settings = ("strategy=full", "training.lr=1e30", "training.max_grad_norm=null")
    for _ in range(2):
        ended = zygote.run(tmp_path, *settings)
        assert ended.code == 2
        assert "is not finite at step" in ended.said
        assert "use a lower training.lr (now 1e+30)" in ended.said
        assert "Traceback" not in ended.said
        failed = record(tmp_path)
        assert failed["status"] == "failed"
        assert "is not finite at step" in failed["reason"]
        assert failed["scores"] == {}
    ended = zygote.run(tmp_path, *settings, "training.precision=fp32", ranks=2)
    assert ended.codes == [2, 2], ended.said + ended.others


def test_a_second_process_on_a_run_is_told(zygote: Zygote, tmp_path: Path) -> None:
    before = "import os, time\nRecordingCallback.on_train_begin = lambda *_, **__: time.sleep(60)"
    first = zygote.start(tmp_path, before=before)
    wait_for(lambda: (only_run(tmp_path) / "run.json").exists())
    second = zygote.run(tmp_path)
    assert second.code == 2
    assert "another process is using this run - wait for it or stop it" in second.said
    os.kill(first.pids[0], signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    assert zygote.run(tmp_path, "training.steps=2").code == 0  # a lock dies with its process


def test_a_folder_of_another_recipe_or_version_is_refused(
    zygote: Zygote, tmp_path: Path, whole: Path
) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    described = only_run(tmp_path) / "run.json"
    text = described.read_text()
    digest = record(whole)["digest"]
    described.write_text(text.replace(digest, digest[:8] + "0" * 56))
    ended = zygote.run(tmp_path, "training.save_steps=4")
    assert ended.code == 2
    assert "belongs to another recipe - move it away" in ended.said
    described.write_text(text.replace('"schema_version": 2', '"schema_version": 0'))
    ended = zygote.run(tmp_path, "training.save_steps=4")
    assert ended.code == 2
    assert "was made by another version of peftkit (schema 0, this one is 2)" in ended.said


def test_another_world_is_refused_unless_inexact_and_the_record_says_so(
    zygote: Zygote, tmp_path: Path
) -> None:
    settings = ("training.save_steps=4",)
    zygote.run(tmp_path, *settings, before=killed_at(6))
    ended = zygote.run(tmp_path, *settings, ranks=2)
    assert ended.codes == [2, 2]
    assert (
        "began with ranks 1, sharding none, and cannot be resumed exactly with ranks 2, sharding"
        in (words(ended.said))
    )
    ended = zygote.run(tmp_path, *settings, "training.threads=2")
    assert ended.code == 2
    assert "began with threads 1, and cannot be resumed exactly with threads 2" in words(ended.said)
    ended = zygote.run(tmp_path, *settings, "--allow-inexact-resume", ranks=2, before=killed_at(10))
    assert "resuming at step 4" in ended.said
    ended = zygote.run(tmp_path, *settings, ranks=2)  # the world that it now stands in
    assert ended.codes == [0, 0], ended.said
    assert record(tmp_path)["exact"] is False
    assert record(tmp_path)["world"]["ranks"] == 2
    assert len(losses(tmp_path)) == 20


def test_a_run_without_a_checkpoint_may_begin_anew_in_another_world(
    zygote: Zygote, tmp_path: Path
) -> None:
    zygote.run(tmp_path, before=killed_at(2))
    assert set(zygote.run(tmp_path, ranks=2).codes) == {0}
    assert record(tmp_path)["exact"] is True


STOPS_EARLY = ("training.evaluate=2", "training.patience=2", "training.save_steps=3")


@pytest.mark.parametrize(
    "strategy", [("strategy=lora",), ("strategy=full",), ("strategy={kind: adapter}",)]
)
def test_early_stopping_ends_with_the_best_weights_interrupted_or_not(
    zygote: Zygote, tmp_path: Path, strategy: tuple[str, ...]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    settings = (*strategy, *STOPS_EARLY, "training.epochs=6")
    # each evaluation is worse than the one before, but for the one after step 4
    scores = (
        "import peftkit.training.trainer as t\n"
        "real = t.PeftTrainer.log\n"
        "def log(self, logs, *rest):\n"
        "    if 'eval_score' in logs:\n"
        "        step = self.state.global_step\n"
        "        logs['eval_score'] = 1.0 if step == 4 else 0.5 - step / 100\n"
        "    real(self, logs, *rest)\n"
        "t.PeftTrainer.log = log\n"
    )
    assert zygote.run(whole, *settings, before=scores).code == 0
    assert len(losses(whole)) == 8  # two evaluations without a better score after step 4
    found = record(whole)
    assert found["steps"] == 8
    assert found["validation"]["step"] == 4
    assert found["validation"]["score"] == 1.0
    checkpoints = only_run(whole) / "checkpoints"
    assert [p.name for p in checkpoints.glob("best*")] == ["best-4.safetensors"]
    assert bare(only_run(whole) / "artifact") == bare(checkpoints / "best-4.safetensors")
    for step in (5, 7):
        zygote.run(killed, *settings, before=scores + killed_at(step))
    assert zygote.run(killed, *settings, before=scores).code == 0
    assert result(killed) == result(whole)


def bare(place: Path) -> list[tuple[str, bytes]]:
    """The tensors without their names, which differ between artifact and checkpoint."""
    return sorted(tensors(place).values())


def test_keep_last_ends_with_the_last_weights(zygote: Zygote, tmp_path: Path) -> None:
    assert zygote.run(tmp_path, "training.keep=last", "training.steps=6").code == 0
    run = only_run(tmp_path)
    assert not list((run / "checkpoints").glob("best*"))
    last = run / "checkpoints" / "checkpoint-6" / "trained.safetensors"
    assert bare(run / "artifact") == bare(last)


def test_a_place_that_cannot_be_written_is_named(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = zygote.run(tmp_path, "--runs", "file/runs")
    assert ended.code == 2
    assert "cannot be written (Not a directory)" in ended.said
    assert "give another folder with --runs" in ended.said


def test_too_little_disk_is_told_before_the_training(zygote: Zygote, tmp_path: Path) -> None:
    before = (
        "import shutil, collections\n"
        "shutil.disk_usage = lambda _: collections.namedtuple('Usage', 'free')(1000)\n"
    )
    ended = zygote.run(tmp_path, before=before)
    assert ended.code == 2
    assert "0.0 GB free, the run may need" in words(ended.said)
    assert "Traceback" not in ended.said


def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_when_there_is_room(
    zygote: Zygote, tmp_path: Path, whole: Path
) -> None:
    before = (
        "import errno, peftkit.training.callbacks as r\n"
        "real = r.mark_complete\n"
        "def full(path, facts):\n"
        "    if path.name == 'checkpoint-8':\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    real(path, facts)\n"
        "r.mark_complete = full\n"
    )
    ended = zygote.run(tmp_path, "training.save_steps=4", before=before)
    assert ended.code == 2
    assert "checkpoint-8: cannot be written (No space left on device)" in words(ended.said)
    assert not (only_run(tmp_path) / "record.json").exists()  # interrupted, not failed
    ended = zygote.run(tmp_path, "training.save_steps=4")
    assert "resuming at step 4" in ended.said
    assert same(tmp_path, whole)


def test_the_log_has_each_step_once(whole: Path) -> None:
    assert [line["step"] for line in logged(whole) if "loss" in line] == list(range(1, 21))
