"""Runs the comparison `imdb_first` and files its records: python benchmarks/imdb_first.py DATA.

Each run is a `peftkit train` process of its own; one that is finished is not run again.
"""

import argparse
import gzip
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
RECORDS = HERE / "records" / "imdb_first"
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
    file_record(record, given.runs / f"{record['name']}-{record['digest'][:8]}")
    score = record["scores"]["accuracy"]
    seconds = record["cost"]["total_seconds"]
    print(f"{recipe} seed {seed}: accuracy {score['value']:.4f}, {seconds:.0f} s", flush=True)
    return 0


def file_record(record: dict, folder: Path) -> None:
    """Copy a run's record, without the paths of this machine, and its predictions, compressed."""
    to = RECORDS / folder.name
    to.mkdir(parents=True, exist_ok=True)
    for source in (record["model"], record["data"]):
        source["location"] = Path(source["location"]).name
    name = Path(record["data"]["asked"]).name
    record["recipe"]["data"]["path"] = record["data"]["asked"] = record["data"]["used"] = name
    (to / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    # no time stamp inside: the same predictions give the same file
    packed = gzip.compress((folder / "predictions.jsonl").read_bytes(), mtime=0)
    (to / "predictions.jsonl.gz").write_bytes(packed)


if __name__ == "__main__":
    main()
