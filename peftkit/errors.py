"""Exceptions for users: each message has a place, a fault and a fix."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple


class Fault(NamedTuple):
    """A fault: `where` it is, and `what` is wrong with the fix after a dash."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class PeftkitError(Exception):
    """Base class of errors that users can fix: printed without a traceback, exit code 2."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message, tuple(faults))  # both in args, so that it can be pickled
        self.message = message
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n  ".join([self.message, *map(str, self.faults)])


class RecipeError(PeftkitError, ValueError):
    """The recipe is invalid."""


class DataError(PeftkitError, ValueError):
    """The data cannot be found, read or used."""


class RunError(PeftkitError, RuntimeError):
    """The run cannot start or continue, or its result cannot be trusted."""


class RunBusy(RunError):
    """Another process is working on the run."""


class DiskError(RunError):
    """The disk is full or read-only."""


class RunStopped(RunError):
    """The run was stopped by a signal; it saved a checkpoint and can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.args = (message, signal_number)
        self.signal_number = signal_number


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for an unknown `word`: the nearest choice, or all of them if none is near."""
    names = sorted(set(choices))
    close = get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"choose from {', '.join(names)}" if names else "there are none to choose from"


def nearest_divisors(whole: int, wanted: int) -> str:
    """The divisors of `whole` next to `wanted`, below and above."""
    small = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    divisors = sorted({*small, *(whole // n for n in small)})
    below = [n for n in divisors if n <= wanted][-1:]
    return " and ".join(str(n) for n in below + [n for n in divisors if n > wanted][:1])
