"""Drawing: Vega-Lite to SVG in a process of its own, made ready in good time.

vl-convert stops Python's other threads and needs most of a second before its first picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

PROCESS = Path(__file__).with_name("svg_process.py")


class Drawing:
    """A process that gets ready to draw while the report is still reckoned."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def svgs(self, specifications: Sequence[str]) -> Future[list[str]]:
        """The pictures of Vega-Lite specifications, in their order, once; drawn meanwhile."""

        def draw() -> list[str]:
            said, _ = self.process.communicate("".join(f"{each}\n" for each in specifications))
            if self.process.returncode:
                raise RuntimeError(f"{PROCESS.name} ended with {self.process.returncode}")
            return [json.loads(line) for line in said.splitlines()]

        pool = ThreadPoolExecutor(1)
        drawn = pool.submit(draw)
        pool.shutdown(wait=False)
        return drawn

    def __enter__(self) -> Drawing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
