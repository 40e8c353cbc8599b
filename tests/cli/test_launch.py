"""Ranks that start, stop and exit together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_sigterm_is_forwarded_to_the_ranks_which_save_and_exit(tmp_path: Path) -> None:
    settings = ["training.epochs=400", "training.threads=1", "training.evaluate=never"]
    command = [sys.executable, "-m", "peftkit.cli", "train", "lora_tiny", *settings, "-n", "2"]
    started = subprocess.Popen(
        [*command, "--runs", str(tmp_path)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    log = wait_for_log(tmp_path)
    ranks = [pid for pid in pids() if str(tmp_path) in words_of(pid) and pid != started.pid]
    assert len(ranks) >= 2
    started.send_signal(signal.SIGTERM)
    _, output = started.communicate(timeout=120)
    assert started.returncode == 128 + signal.SIGTERM
    assert "run the same command to resume" in output
    assert list(log.parent.glob("checkpoints/checkpoint-*/whole.json"))
    assert not [pid for pid in ranks if str(tmp_path) in words_of(pid)]


def wait_for_log(folder: Path) -> Path:
    """The log of the one run in `folder`, once it has some lines."""
    for _ in range(600):
        found = [p for p in folder.glob("*/log.jsonl") if p.stat().st_size > 300]
        if found:
            return found[0]
        time.sleep(0.2)
    raise AssertionError("no step was logged within two minutes")


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def words_of(pid: int) -> str:
    """The command line of a process; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
