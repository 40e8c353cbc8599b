"""The progress of training: a progress bar on a terminal, else a line from time to time."""

import time
from collections.abc import Mapping
from typing import Any

from peftkit.progress import ProgressBar
from peftkit.runtime.peak_memory import peak_bytes


class StepProgress:
    """Shows the steps and evaluations of a run; nothing on ranks other than the first."""

    LINES = 20
    """Lines over a whole run without a terminal."""

    def __init__(self, name: str, enabled: bool) -> None:
        self.bar = ProgressBar(name, enabled=enabled)
        self._started = 0.0
        self._first = 0
        self._total = 0

    def start(self, step: int, total: int) -> None:
        """Begin at `step` of `total`."""
        self._started, self._first, self._total = time.monotonic(), step, total
        self.bar.start(total, step)

    def update(
        self, step: int, logs: Mapping[str, Any], tokens_per_second: float, padding: float
    ) -> None:
        """Show a step's loss, or an evaluation's score; `padding` is a share of all positions."""
        if "eval_loss" in logs:
            score = logs["eval_score"]
            value = "undefined" if score is None else f"{score:.4f}"
            self.bar.print(f"step {step}: validation score {value}")
            return
        text = (
            f"loss {logs['loss']:.4f}  {tokens_per_second:,.0f} tokens/s  "
            f"padding {padding:.0%}  {peak_bytes()[0] / 2**30:.1f} GiB"
        )
        if self.bar.is_shown:
            self.bar.update(step, text)
        elif step % -(-self._total // self.LINES) == 0:
            done = max(1, step - self._first)
            left = (time.monotonic() - self._started) / done * (self._total - step)
            self.bar.print(f"step {step}/{self._total}  {text}  {left:.0f} s left")

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()
