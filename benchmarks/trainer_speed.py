"""Training speed against `transformers.Trainer` + peft with their defaults, interleaved.

    python benchmarks/trainer_speed.py DATA

Both sides train LoRA r=8 on all linear layers of MiniLM on the same IMDB texts, 256 tokens, batch
16, in rounds that take turns in one process; both are scored on the same test rows afterwards.
Peak memory is a fresh process's a side. Writes `measurements/trainer_speed.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peftkit.config.recipe import Recipe
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source
from peftkit.loading.model import load_model, load_tokenizer
from peftkit.preprocessing.tokenization import encode
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World
from peftkit.runtime.peak_memory import peak_resident_bytes
from peftkit.tasks.base import EvalSplit
from peftkit.training.trainer import fit

BATCH = 16
LR = 5e-4


class Ours:
    """peftkit's own training, as `peftkit train` does it."""

    def __init__(self, recipe: Recipe, world: World, model: Source, examples: Any, names: Any):
        self.recipe, self.world, self.model = recipe, world, model
        tokenizer = load_tokenizer(model.location)
        self.loaded = load_model(recipe, model, tokenizer, names, world.precision)
        self.examples, self.names = examples, names
        self.scratch = Path(tempfile.mkdtemp())

    def train(self, rows: Any, turn: int) -> float:
        """Train on `rows`; samples a second of the training loop."""
        folder = RunDir(self.scratch / str(turn))
        folder.claim("0")
        folder.begin(self.recipe, self.model, self.model)
        examples = {"train": rows, "validation": self.examples["validation"].select([])}
        nothing = EvalSplit([], examples["validation"], self.names)
        outcome = fit(self.recipe, self.loaded, examples, folder, self.world, nothing)
        return outcome.samples / outcome.seconds

    def accuracy(self, rows: Any) -> float:
        """Share of `rows` that are called right."""
        from peftkit.evaluation.prediction import predict

        found = predict(self.loaded, self.recipe.task, rows, self.world)
        return float((found.probabilities.argmax(1) == found.label_ids).mean())


class Theirs:
    """`Trainer` and peft with their defaults, the learning rate and the batch apart."""

    def __init__(self, recipe: Recipe, model: Source) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

        set_seed(recipe.training.seed)
        base = AutoModelForSequenceClassification.from_pretrained(model.location, num_labels=2)
        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear")
        self.model = get_peft_model(base, config)
        self.tokenizer = AutoTokenizer.from_pretrained(model.location)

    def trainer(self, rows: Any) -> Any:
        """A `Trainer` over `rows`."""
        from transformers import Trainer, TrainingArguments

        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=LR,
            lr_scheduler_type="constant",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        kept = rows.select_columns(["input_ids", "token_type_ids", "labels"])
        return Trainer(
            self.model,
            arguments,
            train_dataset=kept,
            eval_dataset=kept,
            processing_class=self.tokenizer,
        )

    def train(self, rows: Any, turn: int) -> float:
        """Train on `rows`; samples a second of the training loop, as the Trainer says."""
        done = self.trainer(rows).train()
        return float(done.metrics["train_samples_per_second"])

    def accuracy(self, rows: Any) -> float:
        """Share of `rows` that are called right."""
        found = self.trainer(rows).predict(rows.select_columns(["input_ids", "labels"]))
        return float((found.predictions.argmax(1) == found.label_ids).mean())


def prepare(data: Path, rows: int, test_rows: int) -> Any:
    """The recipe, the world, the model and the encoded splits."""
    recipe = Recipe.load(
        "lora_imdb",
        f"data.path={data}",
        f"data.limit={{train: {rows}, validation: 50, test: {test_rows}}}",
        f"training={{batch_size: {BATCH}, lr: {LR}, schedule: constant, warmup: 0}}",
        "training.evaluate=never",
    )
    world = World.enter(recipe.training)
    model = find_model(recipe.model)
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    names = recipe.task.label_names(splits)
    examples = encode(recipe, splits, load_tokenizer(model.location), model, names)
    examples["train"] = examples["train"].shuffle(seed=0)  # rounds of a file in label order
    return recipe, world, model, examples, names


def peak_of(side: str, data: Path) -> int:
    """Largest resident set, in bytes, of a fresh process that trains one side on 128 rows."""
    command = [sys.executable, __file__, str(data), "--peak", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def measure_peak(side: str, data: Path) -> None:
    """Print this process's peak after training one side."""
    recipe, world, model, examples, names = prepare(data, 128, 50)
    chosen: Any = (
        Ours(recipe, world, model, examples, names) if side == "ours" else Theirs(recipe, model)
    )
    chosen.train(examples["train"], 0)
    print(peak_resident_bytes())


def main() -> None:
    """Take turns, score both, measure memory, print and write ratios."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--rows", type=int, default=1024)
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--test-rows", type=int, default=500)
    options.add_argument("--peak", choices=["ours", "theirs"])
    given = options.parse_args()
    if given.peak:
        return measure_peak(given.peak, given.data)
    recipe, world, model, examples, names = prepare(given.data, given.rows, given.test_rows)
    sides: dict[str, Any] = {
        "theirs": Theirs(recipe, model),
        "ours": Ours(recipe, world, model, examples, names),
    }
    share = given.rows // given.rounds
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(given.rounds):
        rows = examples["train"].select(range(turn * share, (turn + 1) * share))
        for name, side in sides.items():
            speeds[name].append(side.train(rows, turn))
        print(f"round {turn + 1}: " + ", ".join(f"{n} {s[-1]:.1f}/s" for n, s in speeds.items()))
    ratios = [o / t for o, t in zip(speeds["ours"], speeds["theirs"], strict=True)]
    found = {
        "samples_per_second": speeds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "accuracy": {name: side.accuracy(examples["test"]) for name, side in sides.items()},
        "test_rows": given.test_rows,
        "train_rows": given.rows,
        "peak_bytes": {name: peak_of(name, given.data) for name in sides},
        "device": world.device,
        "threads": world.threads,
        "precision": world.precision,
    }
    to = Path(__file__).parent / "measurements" / "trainer_speed.json"
    to.parent.mkdir(exist_ok=True)
    to.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
