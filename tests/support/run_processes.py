"""Runs for tests: started in processes of their own, and compared bit for bit."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("HF_HUB_OFFLINE", None)
SMALL = (
    "data.rows=120",
    "training.batch_size=8",
    "training.threads=1",
    "training.proof=run",
)
"""80-odd rows to train on, ten steps an epoch; one thread, for bit-exactness and shared cores."""


@dataclass(frozen=True)
class Ended:
    """What a process (or the ranks of one run) left behind."""

    codes: list[int]
    said: str
    """Output of rank 0."""
    others: str = ""
    """Output of the other ranks."""

    @property
    def code(self) -> int:
        return self.codes[0]


class Zygote:
    """`zygote.py`, and a way to have runs forked from it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.count = 0

    def ask(self, command: Mapping[str, Any]) -> list[int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def start(
        self,
        folder: Path,
        *settings: str,
        recipe: str = "lora_tiny",
        ranks: int = 1,
        before: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> "Started":
        """Begin a run in `folder`/runs; `before` is code that its processes do first."""
        self.count += 1
        out = folder / f"output-{self.count}"
        job = {
            "arguments": [f"recipe={recipe}", *SMALL, *settings],
            "out": str(out),
            "ranks": ranks,
            "before": before,
            "environment": dict(environment or {}),
            "port": free_port() if ranks > 1 else 0,
        }
        return Started(self, self.ask({"start": job}), out)

    def run(self, folder: Path, *settings: str, **job: Any) -> Ended:
        """Begin a run and wait for its end."""
        return self.start(folder, *settings, **job).wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@dataclass(frozen=True)
class Started:
    """A run under way."""

    zygote: Zygote
    pids: list[int]
    out: Path

    def wait(self) -> Ended:
        codes = self.zygote.ask({"wait": self.pids})
        said = [Path(f"{self.out}.{rank}").read_text() for rank in range(len(codes))]
        return Ended(codes, said[0], "".join(said[1:]))


def killed_at(step: int) -> str:
    """Code that ends a process with SIGKILL when `step` is done."""
    return f"at_step({step}, {int(signal.SIGKILL)})"


def command(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, seconds: int = 180
) -> Ended:
    """`python ARGUMENTS` in `folder`, to its end."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    return Ended([done.returncode], done.stdout + done.stderr)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def only_run(folder: Path) -> Path:
    """The one run folder in `folder`/runs."""
    (found,) = [path for path in (folder / "runs").iterdir() if path.is_dir()]
    return found


def record(folder: Path) -> dict[str, Any]:
    return json.loads((only_run(folder) / "record.json").read_text())  # type: ignore[no-any-return]


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run's log."""
    lines = (only_run(folder) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in logged(folder) if "loss" in line]


def result(folder: Path) -> dict[str, Any]:
    """All that a run computed: bytes of the artifact, log lines, predictions."""
    run = only_run(folder)
    artifact = tensors(run / "artifact")
    predictions = (run / "predictions.jsonl").read_text()
    return {**artifact, "log": logged(folder), "predictions": predictions}


def tensors(place: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor in a safetensors file, or in those of a folder, by name.

    The files themselves need not be the same: the order of their metadata is by chance.
    """
    found = {}
    for path in [place] if place.is_file() else sorted(place.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        for name, what in header.items():
            first, last = what["data_offsets"]
            found[name] = (what["dtype"], content[start + first : start + last])
    assert found
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two runs computed the same, bit for bit."""
    first, second = result(one), result(other)
    different = [key for key in first if first[key] != second.get(key)]
    return not different and first.keys() == second.keys()


def words(text: str) -> str:
    """Text without its line breaks, for matching messages."""
    return re.sub(r"\s+", " ", text)
