"""The script for launchers: `accelerate launch peftkit/run.py recipe=lora_imdb strategy.r=16`."""

import sys
from pathlib import Path

# Python puts the directory of a script first on sys.path, where our modules could shadow others;
# the repository in its place allows to run from a checkout
sys.path[0] = str(Path(__file__).resolve().parents[1])

from peftkit.cli.commands import run_recipe  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_recipe(sys.argv[1:]))
