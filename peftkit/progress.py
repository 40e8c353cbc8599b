"""The display: a progress bar on a terminal, a line now and then elsewhere."""

import importlib
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Display:
    """What the user sees of the steps; nothing on other ranks than the first."""

    LINES = 20
    """Lines over a whole run where there is no terminal."""

    def __init__(self, name: str, shown: bool) -> None:
        self.name, self.shown = name, shown
        self.bar: Any = None
        self._task: Any = None
        self._started = 0.0
        self._first = 0
        self._steps = 0

    def start(self, step: int, steps: int) -> None:
        """Begin at `step` of `steps`."""
        self._started, self._first, self._steps = time.monotonic(), step, steps
        if not (self.shown and sys.stderr.isatty()):
            return
        progress = importlib.import_module("rich.progress")
        console = importlib.import_module("rich.console").Console(stderr=True)
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[facts]}"),
            progress.TimeRemainingColumn(),
            console=console,
        )
        self._task = self.bar.add_task(self.name, total=steps, completed=step, facts="")
        self.bar.start()

    def update(
        self, step: int, logs: Mapping[str, Any], tokens_per_second: float, padding: float
    ) -> None:
        """Show a step's loss, or an evaluation's score."""
        if not self.shown:
            return
        if "eval_loss" in logs:
            score = logs["eval_score"]
            self._print(
                f"step {step}: validation score "
                + ("undefined" if score is None else f"{score:.4f}")
            )
            return
        facts = (
            f"loss {logs['loss']:.4f}  {tokens_per_second:,.0f} tokens/s  "
            f"padding {padding:.0%}  {peak_bytes()[0] / 2**30:.1f} GiB"
        )
        if self.bar is not None:
            self.bar.update(self._task, completed=step, facts=facts)
        elif step % -(-self._steps // self.LINES) == 0:
            done = max(1, step - self._first)
            left = (time.monotonic() - self._started) / done * (self._steps - step)
            self._print(f"step {step}/{self._steps}  {facts}  {left:.0f} s left")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()

    def _print(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def peak_bytes() -> tuple[int, int | None]:
    """Largest memory so far: allocated and reserved on a GPU, else the resident set and None."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return peak_resident_bytes(), None


def forget_peak() -> bool:
    """Let `peak_bytes` count anew from here; False where the system does not let it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: proc_pid_clear_refs(5)
    except OSError:  # kernels without CONFIG_PROC_PAGE_MONITOR, or a closed /proc
        return False
    return True


def peak_resident_bytes() -> int:
    """Largest resident set of this process.

    Linux hands `ru_maxrss` on from the process that started this one: its own is in /proc.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
