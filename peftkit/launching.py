"""Launching: the ranks of one machine, or accelerate's launcher with a file."""

import subprocess
import sys
from pathlib import Path
from typing import Any


def launch(options: Any) -> int:
    """Start `run.py` through the launcher, its recipe already checked; the exit code.

    Without CUDA `accelerate launch --cpu` starts one process whatever it is told (1.15), so ranks
    on CPUs are started by torchrun.
    """
    script = str(Path(__file__).with_name("run.py"))
    settings = [f"recipe={options.recipe}", *options.settings, "--runs", str(options.runs)]
    settings += [f"--{flag}" for flag in ("again", "inexact", "json") if getattr(options, flag)]
    if options.launch is not None:
        starter = ["accelerate.commands.launch", "--config_file", str(options.launch)]
    else:
        starter = ["torch.distributed.run", "--standalone", f"--nproc_per_node={options.ranks}"]
    return subprocess.run([sys.executable, "-m", *starter, script, *settings]).returncode
