"""Tables: a row per line for other programs, rich ones on a terminal."""

import os
import pty
import sys
from pathlib import Path

import pytest

from peftkit.tables import print_rows
from support.commands import ROOT

ROWS = [
    {"name": "lora", "about": "W + [B] A", "r": 8},
    {"name": "full", "about": "all\tof\nit", "r": ""},
]


def test_without_a_terminal_each_row_is_a_line_without_a_header(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_rows(ROWS)
    assert capsys.readouterr().out == "lora\tW + [B] A\t8\nfull\tall of it\t\n"


def test_no_rows_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([])
    assert capsys.readouterr().out == ""


def on_a_terminal(*arguments: str, cwd: Path) -> str:
    """What `python ARGUMENTS` writes to a terminal."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(cwd)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "dumb"}
        os.execve(sys.executable, [sys.executable, *arguments], environment)
    written = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(terminal)
    os.waitpid(pid, 0)
    return written.decode()


def test_on_a_terminal_a_table_has_a_header_and_shows_brackets_as_they_are(tmp_path: Path) -> None:
    code = f"from peftkit.tables import print_rows; print_rows({ROWS!r})"
    shown = on_a_terminal("-c", code, cwd=tmp_path)
    assert "name" in shown and "about" in shown and "W + [B] A" in shown and "│" in shown
