"""Launch the ranks of a run: with torchrun on one machine, or with accelerate and a config file."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from peftkit.errors import RunError


def launch(options: Any) -> int:
    """Start `run.py` with the launcher, for a recipe that is validated; the exit code.

    A SIGTERM is forwarded, so that the ranks save a checkpoint and exit with this process; a Ctrl-C
    reaches them directly. Launchers exit with 1 after any failure of a rank; after a signal the
    exit code here is 128 plus its number.
    """
    command = [sys.executable, "-m", *starter(options.launch, options.ranks), *arguments(options)]
    received: list[int] = []
    with subprocess.Popen(command) as started:

        def forward(number: int, _: object) -> None:
            received.append(number)
            if number == signal.SIGTERM:
                started.terminate()

        before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
        code = started.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return 128 + received[0] if received else code


def starter(file: Path | None, ranks: int | None) -> list[str]:
    """The module of the launcher and its options.

    Without CUDA, `accelerate launch --cpu` starts one process whatever its options (1.15), so that
    torchrun is used unless there is a config file.
    """
    if file is None:
        return ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    if not file.is_file():
        raise RunError(f"--launch {file}: there is no such file - see recipes/launch/ for examples")
    options = [] if ranks is None else [f"--num_processes={ranks}"]
    return ["accelerate.commands.launch", f"--config_file={file}", *options]


def arguments(options: Any) -> list[str]:
    """`run.py` with the recipe, settings and options of `peftkit train`."""
    script = str(Path(__file__).parents[1] / "run.py")
    flags = [
        f"--{flag}"
        for flag in ("rerun", "allow-inexact-resume", "json")
        if getattr(options, flag.replace("-", "_"))
    ]
    named = [f"recipe={options.recipe}", *options.settings]
    return [script, *named, f"--runs={options.runs}", *flags]
