"""The public API is what tests/public_api.txt lists: names, signatures, extension points."""

import subprocess
import sys
from pathlib import Path

import peftkit
from support.commands import run_py
from support.public_api import public_api

LISTED = Path(__file__).with_name("public_api.txt")


def test_names_and_signatures_are_as_listed() -> None:
    update = "if the change is meant: python tests/support/public_api.py > tests/public_api.txt"
    assert list(public_api()) == LISTED.read_text().splitlines(), update


def test_every_public_name_is_typed_and_listed_by_dir() -> None:
    assert sorted(peftkit.PUBLIC) == peftkit.__all__ == dir(peftkit)


def test_run_py_takes_a_recipe_by_its_path(tmp_path: Path) -> None:
    done = run_py("recipe=lora_tiny", "strategy.r=0", cwd=tmp_path)
    assert done.returncode == 2 and "strategy.r" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_is_installed_under_its_name() -> None:
    command = Path(sys.executable).with_name("peftkit")
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: peftkit")
