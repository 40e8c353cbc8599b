"""Progress: how far a merge has come, on a terminal only."""

import importlib
import sys
from typing import Any


class Progress:
    """A bar of bytes; nothing where there is no terminal."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            progress = importlib.import_module("rich.progress")
            console = importlib.import_module("rich.console").Console(stderr=True)
            self.bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TimeRemainingColumn(),
                console=console,
            )
            self.task = self.bar.add_task(self.name, total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, num_bytes: int) -> None:
        """Count bytes that are written."""
        if self.bar is not None:
            self.bar.advance(self.task, num_bytes)
