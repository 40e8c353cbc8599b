"""The entry points of `peftkit` and `run.py`: parse, run the command, print errors, exit code."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peftkit.cli.commands import COMMANDS, load, train_and_show
from peftkit.cli.parser import parser, run_parser
from peftkit.config.composition import recipe_names
from peftkit.deprecation import EarlierNameWarning, current_options
from peftkit.errors import PeftkitError, RecipeError, RunStopped
from peftkit.runs.learning_curves import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `peftkit COMMAND ...`; the exit code."""
    with notes_of_earlier_names():
        options = parser().parse_args(
            current_options(sys.argv[1:] if arguments is None else arguments)
        )
        return guarded(lambda: COMMANDS[options.command](options))


def launched(arguments: Sequence[str]) -> int:
    """Run `run.py recipe=NAME key=value ...` on this rank; the exit code."""

    def work() -> None:
        named = [a.partition("=")[2] for a in options.settings if a.startswith("recipe=")]
        if len(named) != 1 or not named[0]:
            what = f"recipe= is given {len(named)} times" if named[1:] else "recipe= is missing"
            raise RecipeError(f"{what} - set recipe=NAME, one of {', '.join(recipe_names())}")
        settings = [a for a in options.settings if not a.startswith("recipe=")]
        train_and_show(load(named[0], settings), options)

    with notes_of_earlier_names():
        options = run_parser().parse_args(current_options(arguments))
        return guarded(work)


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
