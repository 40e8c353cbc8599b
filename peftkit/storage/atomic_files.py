"""Atomic file writes, and errors that say what to do about a full disk."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftkit.errors import DiskError

FIXES = {
    errno.EACCES: "give another folder with --runs",
    errno.EDQUOT: "free some space, or run with --runs elsewhere",
    errno.EFBIG: "raise the limit of ulimit -f, or give another folder with --runs",
    errno.EEXIST: "give another folder with --runs",
    errno.ENOSPC: "free some space, or run with --runs elsewhere",
    errno.ENOTDIR: "give another folder with --runs",
    errno.EPERM: "give another folder with --runs",
    errno.EROFS: "give another folder with --runs",
}
"""What to do about disk errors, by errno."""
DISK_FULL_MESSAGES = (
    "inline_container.cc",
    "PytorchStreamWriter failed writing",
    "iostream error",
    "No space left on device",
    "File too large",
)
"""Messages of torch's and safetensors' writers on a full disk, which are not `OSError`s."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: a killed process leaves the old file or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:  # a full disk needs its space back
        beside.unlink(missing_ok=True)
        raise


def sync_to_disk(path: Path) -> None:
    """Flush the file at `path` to the disk, so that it survives a power failure."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise `RunError` if fewer than `needed_bytes` are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DiskError(
            f"{folder}: {free / 1e9:.1f} GB free, the run may need {needed_bytes / 1e9:.1f} GB for "
            "checkpoints and the artifact - free some, or run with --runs elsewhere"
        )


@contextmanager
def explain_disk_errors(folder: Path, option: str = "--runs") -> Iterator[None]:
    """Turn errors of a full or read-only disk into a `DiskError` that says what to do.

    `option` is the command line option for another folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FIXES:
            raise
        place = error.filename or folder
        fix = FIXES[error.errno].replace("--runs", option)
        raise DiskError(f"{place}: cannot be written ({error.strerror}) - {fix}") from error
    except Exception as error:
        if not any(sign in str(error) for sign in DISK_FULL_MESSAGES):
            raise
        message = str(error).splitlines()[0]
        fix = FIXES[errno.ENOSPC].replace("--runs", option)
        raise DiskError(f"{folder}: cannot be written ({message}) - {fix}") from error
