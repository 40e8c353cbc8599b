"""The command line: two doors, and errors to one print and exit code 2."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peftkit.cli.commands import VERBS, load, train_and_show
from peftkit.cli.parser import parser, run_parser
from peftkit.config.composition import recipe_names
from peftkit.deprecation import EarlierNameWarning, current_options
from peftkit.errors import PeftkitError, RecipeError, RunStopped
from peftkit.runs.learning_curves import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """`peftkit VERB ...`; returns the exit code."""
    with notes_of_earlier_names():
        options = parser().parse_args(current_options(arguments or sys.argv[1:]))
        return guarded(lambda: VERBS[options.verb](options))


def launched(arguments: Sequence[str]) -> int:
    """What `run.py` does: `recipe=NAME key=value ...`, on this rank of any number."""

    def work() -> None:
        named = [a.partition("=")[2] for a in options.settings if a.startswith("recipe=")]
        if len(named) != 1 or not named[0]:
            what = f"recipe= is given {len(named)} times" if named[1:] else "no recipe is named"
            raise RecipeError(f"{what} - say recipe=NAME, one of {', '.join(recipe_names())}")
        settings = [a for a in options.settings if not a.startswith("recipe=")]
        train_and_show(load(named[0], settings), options)

    with notes_of_earlier_names():
        options = run_parser().parse_args(current_options(arguments))
        return guarded(work)


@contextmanager
def notes_of_earlier_names() -> Iterator[None]:
    """Print the warning of each earlier name as one line."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, EarlierNameWarning):
            tell(f"note: {message}")
        else:
            show(message, category, *where)

    with warnings.catch_warnings():
        warnings.simplefilter("default", EarlierNameWarning)
        warnings.showwarning = show_line  # type: ignore[assignment]
        yield


def guarded(work: Callable[[], Any]) -> int:
    """Do `work`; a user's mistake is printed once, by rank 0, without a traceback."""
    try:
        work()
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return 0
    except RunStopped as stopped:
        tell(str(stopped))
        return 128 + stopped.signal_number
    except PeftkitError as error:
        tell(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        tell("stopped")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def tell(message: str) -> None:
    """Print a last word, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        # names out of records and data may hold what a terminal would obey
        lines = map(printable, message.split("\n"))
        print("\n".join(lines), file=sys.stderr, flush=True)
