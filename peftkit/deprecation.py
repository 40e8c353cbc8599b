"""Earlier names of settings, options and arguments: read for one version more, with a warning."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

Called = TypeVar("Called", bound=Callable[..., Any])
OPTIONS = {
    "--again": "--rerun",
    "--head-of": "--head-from",
    "--inexact": "--allow-inexact-resume",
}
"""Options of the command line that were renamed."""


class EarlierNameWarning(FutureWarning):
    """A name of the version before was used: the message says what it is called now."""


def warn_of(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`; `stacklevel` is that of `warnings.warn`."""
    warnings.warn(f"{old} is now called {new} - rename it", EarlierNameWarning, stacklevel)


def accept_earlier(**names: str) -> Callable[[Called], Called]:
    """Let a function be called with keyword arguments by their earlier names (earlier=current)."""

    def decorate(function: Called) -> Called:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            for old, new in names.items():
                if old in given:
                    warn_of(f"{function.__name__}({old}=...)", f"{new}=...")
                    given[new] = given.pop(old)
            return function(*args, **given)

        return cast(Called, call)

    return decorate


def current_options(arguments: Sequence[str]) -> list[str]:
    """What was typed, with renamed options by the names they have now."""
    found = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in OPTIONS:
            warn_of(option, OPTIONS[option])
        found.append(OPTIONS.get(option, option) + equals + value)
    return found
