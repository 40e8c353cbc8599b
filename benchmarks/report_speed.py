"""How long a report of many records takes, and how large its files are.

    python benchmarks/report_speed.py [--records 1000] [--seeds 5] [--rounds 3] [--keep]

Makes records with predictions in a temporary folder (each strategy under 5 seeds, 2,000 test rows)
and runs `peftkit report FOLDER --to FOLDER` as a process. Prints seconds on the clock and of
the processor, the fewest of the rounds being the least disturbed by other work on the machine.
`--keep` writes `measurements/report_speed.json`.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.config.recipe import Recipe
from peftkit.hub.source import Source
from peftkit.metrics.classification import classification_scores
from peftkit.records.record import Cost, ParameterCount, RunRecord, WorldRecord

MEASUREMENTS = Path(__file__).parent / "measurements"
ROWS = 2000
LABELS = ("no", "yes")
KINDS = ("lora", "adapter", "frozen", "bitfit", "full")


def source(name: str) -> Source:
    """Where a made-up model or data set would have come from."""
    return Source(requested=name, used=name, origin="path", location="", identity=f"sha256:{name}")


def answers(strategy: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Label ids, and probabilities that tell them in 80 to 90 % of the rows."""
    labels = np.arange(ROWS) % 2
    hard = np.random.default_rng(0).standard_normal(ROWS)
    own = np.random.default_rng([strategy, seed]).standard_normal(ROWS)
    lean = 0.9 + 0.003 * (strategy % 100) + 0.9 * hard + 0.4 * own
    of_label = 1 / (1 + np.exp(-lean))
    second = np.where(labels == 1, of_label, 1 - of_label).round(6)
    return labels, np.stack([(1 - second).round(6), second], axis=1)


def cost(strategy: int, seed: int) -> Cost:
    """What a made-up run took."""
    return Cost(
        train_seconds=100 + strategy + seed,
        evaluate_seconds=5,
        total_seconds=120 + strategy,
        tokens=1_000_000,
        tokens_per_second=10_000 - strategy,
        samples_per_second=80,
        padding_share=0.1,
        peak_bytes=(500 + strategy) * 2**20,
        peak_reserved_bytes=None,
        predicted_peak_bytes=400 * 2**20,
        artifact_bytes=10_000 * (1 + strategy),
    )


def write_run(folder: Path, strategy: int, seed: int) -> None:
    """A run's folder with record, predictions and log, as training leaves it."""
    labels, chances = answers(strategy, seed)
    kind = KINDS[strategy % len(KINDS)]
    settings = [f"strategy={kind}", f"training.lr={1e-4 * (1 + strategy)}"]
    recipe = Recipe.load("lora_tiny", *settings, f"training.seed={seed}")
    found = classification_scores(labels, chances, LABELS, majority_class=0, resamples=20)
    record = RunRecord(
        name=f"{kind}_{strategy}",
        digest=f"{strategy:032x}{seed:032x}",
        status="finished",
        recipe=recipe.settings(),
        model=source("MiniLM"),
        data=source("reviews"),
        rows={"train": 4000, "validation": 400, "test": ROWS},
        notes=[],
        parameters=ParameterCount(
            trainable=1000 + strategy, total=10_000_000, base=9_999_000, head=100, adapter=900
        ),
        headline="accuracy",
        scores=found.scores,
        baseline=found.majority,
        details={"confusion": found.confusion, "test_loss": 0.4},
        validation={"step": 100, "score": 0.84, "loss": 0.4},
        steps=250,
        cost=cost(strategy, seed),
        world=WorldRecord(
            ranks=1,
            threads=2,
            precision="bf16",
            sharding="none",
            device="cpu: made up",
            micro_batch_size=8,
        ),
        versions={"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"},
        finished_at="2026-11-22T00:00:00+00:00",
    )
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(record.model_dump_json(indent=1))
    rows = (
        {
            "row": f"test.csv:{row}",
            "hash": f"{row:016x}",
            "label": LABELS[label],
            "predicted": LABELS[int(chance.argmax())],
            "probabilities": chance.tolist(),
        }
        for row, (label, chance) in enumerate(zip(labels, chances, strict=True))
    )
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "predictions.jsonl.gz").write_bytes(gzip.compress(content, 6, mtime=0))
    steps = [{"step": s, "loss": 0.7 - s / 1000} for s in range(10, 260, 10)]
    evaluations = [{"step": s, "eval_score": 0.6 + s / 1000} for s in (50, 100, 150, 200, 250)]
    lines = "".join(json.dumps(entry) + "\n" for entry in [*steps, *evaluations])
    (folder / "log.jsonl").write_text(lines)


def measured(runs: Path, out: Path) -> dict[str, float]:
    """One report as a process: seconds on the clock, and the processor's of it and its threads."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "peftkit.cli", "report", str(runs), "--to", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.monotonic() - began,
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
    }


def main() -> None:
    """Make the records, measure, print, and keep where that is asked for."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--records", type=int, default=1000)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--keep", action="store_true", help="write the measurement")
    options.add_argument("--runs", type=Path, help="a folder to make them in, or to use again")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = chosen.runs or Path(scratch, "runs")
        for number in range(0 if runs.is_dir() else chosen.records):
            strategy, seed = divmod(number, chosen.seeds)
            write_run(runs / f"run-{strategy:03}-{seed}", strategy, seed)
        rounds = [measured(runs, Path(scratch, "out")) for _ in range(chosen.rounds)]
        made = sorted(path for path in Path(scratch, "out").rglob("*") if path.is_file())
        sizes = {path.name: path.stat().st_size for path in made}
    fewest = {name: min(each[name] for each in rounds) for name in rounds[0]}
    found: dict[str, Any] = {
        "records": chosen.records,
        "seeds": chosen.seeds,
        "test_rows": ROWS,
        "rounds": rounds,
        "fewest": fewest,
        "bytes": sizes,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    print(json.dumps(found, indent=1))
    if chosen.keep:
        path = MEASUREMENTS / "report_speed.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
