"""The command line, run as its users run it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ROOT / "peftkit" / "run.py"


def peftkit(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`peftkit ARGUMENTS` in `cwd`."""
    return python("-m", "peftkit.cli", *arguments, cwd=cwd, **environment)


def run_py(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`run.py ARGUMENTS` in `cwd`, as a launcher starts it."""
    return python(str(RUN), *arguments, cwd=cwd, **environment)


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in `cwd`; `environment` is added, and PYTHONPATH holds the checkout."""
    paths = os.pathsep.join(p for p in (environment.pop("PYTHONPATH", ""), str(ROOT)) if p)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
