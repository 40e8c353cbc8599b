"""Runs a command: warnings and errors as messages on stderr, and the exit code."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peftkit.deprecation import EarlierNameWarning
from peftkit.errors import PeftkitError, RunStopped
from peftkit.runs.learning_curves import printable


@contextmanager
def notes_of_earlier_names() -> Iterator[None]:
    """Print a deprecation warning of an earlier name as one line."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, EarlierNameWarning):
            print_message(f"note: {message}")
        else:
            show(message, category, *where)

    with warnings.catch_warnings():
        warnings.simplefilter("default", EarlierNameWarning)
        warnings.showwarning = show_line  # type: ignore[assignment]
        yield


def guarded(work: Callable[[], Any]) -> int:
    """Run `work`; rank 0 prints the message of a `PeftkitError`, without a traceback."""
    try:
        work()
        sys.stdout.flush()  # here, where a BrokenPipeError is caught
        return 0
    except RunStopped as stopped:
        print_message(str(stopped))
        return 128 + stopped.signal_number
    except PeftkitError as error:
        print_message(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        print_message("stopped")
        return 130
    except BrokenPipeError:  # as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def print_message(message: str) -> None:
    """Print to stderr, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        # names from records and data may contain control sequences
        lines = map(printable, message.split("\n"))
        print("\n".join(lines), file=sys.stderr, flush=True)
