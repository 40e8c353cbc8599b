"""Launching: the ranks of one machine, or accelerate's launcher with a file."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from peftkit.errors import RunError


def launch(options: Any) -> int:
    """Start `run.py` through the launcher, its recipe already checked; the exit code.

    A SIGTERM is passed on, so that the ranks save a checkpoint and end with this process; a Ctrl-C
    has reached them already. Launchers exit 1 whatever their ranks did: what a signal ended is
    128 and the signal's number here.
    """
    command = [sys.executable, "-m", *starter(options.launch, options.ranks), *arguments(options)]
    asked: list[int] = []
    with subprocess.Popen(command) as started:

        def pass_on(number: int, _: object) -> None:
            asked.append(number)
            if number == signal.SIGTERM:
                started.terminate()

        before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
        code = started.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return 128 + asked[0] if asked else code


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
    script = str(Path(__file__).parents[1] / "run.py")
    flags = [
        f"--{flag}"
        for flag in ("rerun", "allow-inexact-resume", "json")
        if getattr(options, flag.replace("-", "_"))
    ]
    named = [f"recipe={options.recipe}", *options.settings]
    return [script, *named, f"--runs={options.runs}", *flags]
