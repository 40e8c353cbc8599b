"""The entry point of `peftkit`: parse the command line and run its command."""

import sys
from collections.abc import Sequence

from peftkit.cli.commands import COMMANDS
from peftkit.cli.exit_codes import guarded, notes_of_earlier_names
from peftkit.cli.parser import parser
from peftkit.deprecation import current_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `peftkit COMMAND ...`; the exit code."""
    with notes_of_earlier_names():
        options = parser().parse_args(
            current_options(sys.argv[1:] if arguments is None else arguments)
        )
        return guarded(lambda: COMMANDS[options.command](options))
