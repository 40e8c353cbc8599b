"""Every task on its real data: python benchmarks/tasks.py DATA --sets stsb mrpc.

LoRA with several seeds, full fine-tuning and bottleneck adapters once, each as its recipe says. A
run that is finished is not run again. Records go to benchmarks/records/<data set>.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filing import file_record

ENCODERS = ("stsb", "mrpc", "conll2003", "entity_types", "semeval", "squad")
LANGUAGE_MODELS = ("multi30k", "samsum", "alpaca", "gsm8k")
SETS = (*ENCODERS, *LANGUAGE_MODELS)
VARIANTS = ("lora", "full", "adapter")
FOLDERS = {"semeval": "semeval2010_task8"}
SETTINGS = ["training.threads=1", "training.proof=run"]
SPLITS = ("train", "validation", "test")
ENTITY_TYPES = {
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "task": "multilabel",
    "training": {"epochs": 2, "batch_size": 32},
}
"""Which kinds of entities a sentence of CoNLL-2003 names: several, one or none."""


def main() -> None:
    """Run what has no record yet, `--together` at a time, and file the records."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, help="folder with a folder for each data set")
    options.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    options.add_argument("--seeds", type=int, help="of LoRA (default: 5, 3 for language models)")
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--together", type=int, default=1, help="runs at a time")
    options.add_argument("settings", nargs="*", metavar="key=value")
    given = options.parse_intermixed_args()
    wanted = [
        (name, variant, seed)
        for name in given.sets
        for variant in given.variants
        for seed in seeds(given, name, variant)
    ]
    with ThreadPoolExecutor(given.together) as pool:
        done = list(pool.map(lambda each: run(given, *each), wanted))
    sys.exit(f"{done.count(False)} of {len(wanted)} runs failed" if False in done else 0)


def seeds(given: argparse.Namespace, name: str, variant: str) -> range:
    """The seeds that a recipe is run with."""
    usual = 3 if name in LANGUAGE_MODELS else 5
    return range((given.seeds or usual) if variant == "lora" else 1)


def run(given: argparse.Namespace, name: str, variant: str, seed: int) -> bool:
    """One run in a process of its own; whether it has a record, which is filed."""
    requested = [f"{variant}_{name}", f"data.path={given.data / FOLDERS.get(name, name)}"]
    if name == "entity_types":
        requested = [str(entity_types(given, variant))]
    settings = [f"training.seed={seed}", *SETTINGS, *given.settings]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "peftkit.cli",
            "train",
            *requested,
            *settings,
            "--runs",
            given.runs,
            "--json",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    label = f"{variant}_{name}, seed {seed}"
    if done.returncode:
        print(f"{label}: failed: {done.stderr.strip()[-500:]}", flush=True)
        return False
    record: dict[str, Any] = json.loads(done.stdout)
    score, cost = record["scores"][record["headline"]], record["cost"]
    interval = f" [{score['low']:.4f}, {score['high']:.4f}]" if score["low"] is not None else ""
    print(
        f"{label}: {record['headline']} {score['value']:.4f}{interval}, "
        f"{cost['train_seconds']:.0f} s of {cost['total_seconds']:.0f}",
        flush=True,
    )
    file_record(record, given.runs / f"{record['name']}-{record['digest'][:8]}", name)
    return True


def entity_types(given: argparse.Namespace, variant: str) -> Path:
    """A recipe of the given variant with its data, made from CoNLL-2003."""
    from datasets import load_dataset

    folder = given.runs.resolve() / "entity_types"
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: str(given.data / "conll2003" / f"{split}.parquet") for split in SPLITS}
    for split, rows in load_dataset("parquet", data_files=files).items():
        names = rows.features["ner_tags"].feature.names
        lines = [
            {
                "text": " ".join(row["tokens"]),
                "label": sorted({names[tag][2:] for tag in row["ner_tags"] if tag}),
            }
            for row in rows
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)
    data = {"kind": "files", "path": str(folder), "max_length": 128, "limit": {"train": 4000}}
    recipe = folder / f"{variant}_entity_types.yaml"
    recipe.write_text(json.dumps({**ENTITY_TYPES, "data": data, "strategy": variant}))
    return recipe


if __name__ == "__main__":
    main()
