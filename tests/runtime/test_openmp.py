"""How long OpenMP's waiting threads spin is configured before torch is imported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import ROOT

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
TORCH = importlib.util.find_spec("torch")
LIBRARY = Path(str(TORCH and TORCH.origin)).parent / "lib" / "libgomp.so.1"
LOAD = f"import peftkit, ctypes; ctypes.CDLL({str(LIBRARY)!r})"


@pytest.mark.skipif(not LIBRARY.is_file(), reason="this torch brings another OpenMP")
@pytest.mark.parametrize(
    ("said", "spins"),
    [
        ({}, "2000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
    ],
)
def test_the_threads_of_torch_wait_as_peftkit_or_the_user_says(
    said: dict[str, str], spins: str
) -> None:
    without = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    shown = {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT), **said}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env={**without, **shown}, capture_output=True, text=True
    )
    assert done.returncode == 0 and f"GOMP_SPINCOUNT = '{spins}'" in done.stderr, done.stderr
