"""A progress bar on a terminal, drawn by rich."""

import importlib
import sys
from typing import Any, Literal


class ProgressBar:
    """A rich progress bar on standard error; a context manager.

    Without a terminal, or if not `enabled`, there is no bar: `is_shown` is False and `update` does
    nothing. `unit` is what is counted; the time shown at the end is the one that is left, by rich's
    estimate, or the one elapsed.
    """

    def __init__(
        self,
        name: str,
        unit: Literal["items", "bytes"] = "items",
        time: Literal["left", "elapsed"] = "left",
        enabled: bool = True,
    ) -> None:
        self.name, self.unit, self.time, self.enabled = name, unit, time, enabled
        self._bar: Any = None
        self._task: Any = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def start(self, total: int, completed: int = 0) -> "ProgressBar":
        """Show the bar at `completed` of `total`."""
        if not (self.enabled and sys.stderr.isatty()):
            return self
        progress = importlib.import_module("rich.progress")
        console = importlib.import_module("rich.console").Console(stderr=True)
        is_bytes = self.unit == "bytes"
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn() if is_bytes else progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[text]}"),
            progress.TimeRemainingColumn() if self.time == "left" else progress.TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task(self.name, total=total, completed=completed, text="")
        self._bar.start()
        return self

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, completed: int, text: str = "") -> None:
        """Set what is completed, and the text after the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, text=text)

    def advance(self, amount: int) -> None:
        """Add `amount` to what is completed."""
        if self._bar is not None:
            self._bar.advance(self._task, amount)

    def print(self, line: str) -> None:
        """Print a line above the bar, or to standard error if there is none."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self.enabled:
            print(line, file=sys.stderr, flush=True)
