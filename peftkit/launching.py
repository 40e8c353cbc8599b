"""Launching: the ranks of one machine, or accelerate's launcher with a file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from peftkit.errors import RunError


def launch(options: Any) -> int:
    """Start `run.py` through the launcher, its recipe already checked; the exit code."""
    command = [sys.executable, "-m", *starter(options.launch, options.ranks), *arguments(options)]
    return subprocess.run(command).returncode


def starter(file: Path | None, ranks: int | None) -> list[str]:
    """The launcher's module and its options.

    Without CUDA `accelerate launch --cpu` starts one process whatever it is told (1.15), so ranks
    without a file are started by torchrun.
    """
    if file is None:
        return ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    if not file.is_file():
        raise RunError(f"--launch {file}: there is no such file - recipes/launch/ has some")
    asked = [] if ranks is None else [f"--num_processes={ranks}"]
    return ["accelerate.commands.launch", f"--config_file={file}", *asked]


def arguments(options: Any) -> list[str]:
    """The script and what was typed behind `peftkit train`, as the script takes it."""
    script = str(Path(__file__).with_name("run.py"))
    flags = [f"--{flag}" for flag in ("again", "inexact", "json") if getattr(options, flag)]
    named = [f"recipe={options.recipe}", *options.settings]
    return [script, *named, f"--runs={options.runs}", *flags]
