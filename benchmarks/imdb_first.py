"""Runs the comparison `imdb_first` and files its records: python benchmarks/imdb_first.py DATA.

Each run is a `peftkit train` process of its own; one that is finished is not run again.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filing import file_record

RECIPES = ["full_imdb", "frozen_imdb", "adapter_imdb", "lora_imdb", "qlora_imdb"]
SEEDS = [0, 1, 2]


def main() -> None:
    """Run what has no record yet, `--together` at a time, and file the records."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, help="folder with IMDB's train and test files")
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--together", type=int, default=1, help="runs at a time")
    options.add_argument("settings", nargs="*", metavar="key=value")
    given = options.parse_intermixed_args()
    wanted = [(recipe, seed) for seed in SEEDS for recipe in RECIPES]
    with ThreadPoolExecutor(given.together) as pool:
        codes = list(pool.map(lambda run: train(*run, given), wanted))
    if any(codes):
        sys.exit(f"{sum(map(bool, codes))} of {len(codes)} runs failed")


def train(recipe: str, seed: int, given: argparse.Namespace) -> int:
    """One run in a process of its own; its exit code."""
    settings = [f"data.path={given.data}", f"training.seed={seed}", *given.settings]
    command = [sys.executable, "-m", "peftkit.cli", "train", recipe, *settings]
    done = subprocess.run(
        [*command, "--runs", str(given.runs), "--json"], capture_output=True, text=True
    )
    if done.returncode:
        print(f"{recipe} seed {seed}: {done.stderr[-1000:]}", flush=True)
        return done.returncode
    record = json.loads(done.stdout)
    file_record(record, given.runs / f"{record['name']}-{record['digest'][:8]}", "imdb_first")
    score = record["scores"]["accuracy"]
    seconds = record["cost"]["total_seconds"]
    print(f"{recipe} seed {seed}: accuracy {score['value']:.4f}, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    main()
