"""`python -m peftkit.cli`, the same as the `peftkit` command."""

import sys

from peftkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
