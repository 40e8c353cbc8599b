"""The callback and the progress bar: what a user sees of a run, and when it saves and stops."""

import fcntl
import os
import pty
import re
import signal
import struct
import termios
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftkit.config.recipe import Recipe
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World
from peftkit.training.callbacks import RecordingCallback, due
from peftkit.training.step_progress import StepProgress
from support.run_processes import Zygote, logged, losses, only_run


@pytest.fixture
def recorder(tmp_path: Path) -> RecordingCallback:
    alone = World(0, 1, 1, "fp32", "cpu", "none")
    return RecordingCallback(Recipe.load("lora_tiny"), RunDir(tmp_path), alone)


def evaluation(step: int, score: float | None) -> dict[str, Any]:
    return {"step": step, "eval_score": score, "eval_loss": 0.1 * step}


def test_the_best_evaluation_is_the_first_with_the_highest_score(
    recorder: RecordingCallback,
) -> None:
    losses = [{"step": step, "loss": 0.5} for step in range(1, 9)]
    assert recorder.best(losses) == {}
    history = [*losses, evaluation(2, 0.5), evaluation(4, 0.7), evaluation(6, 0.7)]
    assert recorder.best(history) == {"step": 4, "score": 0.7, "loss": pytest.approx(0.4)}


@pytest.mark.parametrize(
    ("every", "steps"), [(4, [4, 8, 10]), (20, [10]), ("epoch", [5, 10]), ("never", [])]
)
def test_what_is_due_every_so_many_steps(every: int | str, steps: list[int]) -> None:
    found = [
        step
        for step in range(1, 11)
        if due(every, SimpleNamespace(global_step=step, max_steps=10), step % 5 == 0)  # type: ignore[arg-type]
    ]
    assert found == steps


def test_the_echo_of_a_signal_is_no_second_one(
    recorder: RecordingCallback, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with recorder:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # what torchrun adds to a terminal's own
        assert recorder.signal_on_any_rank() == signal.SIGTERM
        recorder._received_at -= 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_outside_the_main_thread_signals_are_left_alone(recorder: RecordingCallback) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with recorder:
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def test_without_a_terminal_there_are_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (3, 39, 1000):
        progress = StepProgress("run", enabled=True)
        progress.start(0, steps)
        for step in range(1, steps + 1):
            progress.update(step, {"loss": 0.5}, 1234.0, 0.25)
        progress.stop()
        lines = capsys.readouterr().err.splitlines()
        assert min(steps, 10) <= len(lines) <= 20
        assert lines[0].startswith(f"step {-(-steps // 20)}/{steps}  loss 0.5000  1,234 tokens/s")
        assert "padding 25%" in lines[0] and "GiB" in lines[0] and lines[0].endswith("s left")


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StepProgress("run", enabled=False)
    progress.start(0, 10)
    progress.update(1, {"loss": 0.5}, 1.0, 0.0)
    progress.update(1, {"eval_loss": 0.5, "eval_score": None}, 1.0, 0.0)
    progress.stop()
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_terminal_has_a_bar_that_moves(zygote: Zygote, tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    name = os.ttyname(terminal)
    before = f"import os\nos.dup2(os.open({name!r}, os.O_RDWR | os.O_NOCTTY), 2)\n"
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(iter(lambda: read(screen), b"")))
    reader.start()
    ended = zygote.run(tmp_path, before=before, environment={"TERM": "xterm-256color"})
    os.close(terminal)
    reader.join(timeout=10)
    os.close(screen)
    text = re.sub(r"\x1b\[[\d;?]*\w", "", b"".join(shown).decode())
    assert ended.code == 0, text
    # a slow machine draws few frames, so which counts are seen is not certain
    assert "━" in text and {"0", "20"} <= set(re.findall(r"(\d+)/20", text))
    assert "tokens/s" in text and "lora_tiny" in text
    assert "step 10: validation score" in text
    assert "step 1/20" not in text  # no lines beside the bar


def read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # what Linux says when the other side is closed
        return b""


@pytest.mark.slow
def test_a_tracker_gets_every_step_and_the_evaluations(zygote: Zygote, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ended = zygote.run(tmp_path, "training.report_to=[tensorboard]")
    assert ended.code == 0, ended.said
    (events,) = only_run(tmp_path).glob("tensorboard/**/events.out.*")
    seen = EventAccumulator(str(events))
    seen.Reload()
    tracked = [(event.step, event.value) for event in seen.Scalars("loss")]
    assert [step for step, _ in tracked] == list(range(1, 21))
    assert [value for _, value in tracked] == pytest.approx(losses(tmp_path), rel=1e-6)
    assert [event.step for event in seen.Scalars("eval_score")] == [10, 20]
    line = logged(tmp_path)[0]
    assert line.keys() == {"step", "loss", "grad_norm", "learning_rate", "epoch"}
    assert line["grad_norm"] > 0
