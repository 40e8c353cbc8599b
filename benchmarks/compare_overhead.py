"""What a comparison costs beside its runs: `python benchmarks/compare_overhead.py IMDB-FOLDER`.

Six strategies and three seeds on 2,000 reviews, as one `peftkit compare` process from an empty
folder to the page, against the sum of its runs' own training and evaluation. Written to
measurements/compare_overhead.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peftkit.hub.source import cache_folder

TO = Path(__file__).parent / "measurements" / "compare_overhead.json"
FILE = """
recipe: lora_imdb
settings:
  data: {{max_length: 128, limit: {{train: 2000, test: 2000}}}}
strategies: [full, {{kind: frozen, last: 2}}, linear_probe, bitfit, lora, adapter]
seeds: {seeds}
budget: {{trials: 0}}
"""


def main() -> None:
    """Run the comparison once and print the ratio."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, help="folder with IMDB's train and test files")
    options.add_argument("--seeds", type=int, default=3, help="fewer weigh the start the more")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overhead.yaml"
        path.write_text(FILE.format(seeds=given.seeds))
        command = ["compare", str(path), f"data.path={given.data.resolve()}", "--runs", folder]
        environment = {**os.environ, "PEFTKIT_CACHE": str(untokenized(Path(folder)))}
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "peftkit.cli", *command], check=True, env=environment)
        whole = time.perf_counter() - begun
        found = [json.loads(p.read_text()) for p in Path(folder).rglob("record.json")]
    parts = ("train_seconds", "validate_seconds", "evaluate_seconds")
    own = sum(record["cost"][part] for record in found for part in parts)
    all_in_all = sum(r["cost"]["total_seconds"] for r in found)
    measured = {
        "seeds": given.seeds,
        "runs": len(found),
        "comparison_seconds": round(whole, 1),
        "training_and_evaluation_seconds": round(own, 1),
        "runs_seconds": round(all_in_all, 1),
        "ratio": round(whole / own, 3),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    TO.write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


def untokenized(folder: Path) -> Path:
    """A cache that has the model and no data, as on a machine that never saw them."""
    cache = folder / "cache"
    cache.mkdir()
    for path in cache_folder().iterdir():
        if path.name != "tokenized":
            (cache / path.name).symlink_to(path)
    return cache


if __name__ == "__main__":
    main()
