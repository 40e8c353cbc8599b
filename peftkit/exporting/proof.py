"""Verifies an exported folder: its own `load.py` predicts in a process without peftkit."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RunError
from peftkit.evaluation.prediction import move_to_device
from peftkit.inference.predictor import columns_of, inputs_of
from peftkit.loading.model import LoadedModel
from peftkit.merging.verification.proof import ARITHMETIC, MergeProof
from peftkit.merging.verification.verify import (
    ROWS_A_BATCH,
    SCORED_ROWS,
    difference,
    headline,
    held_out_columns,
)
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import environment_without_launcher
from peftkit.tasks.base import Task

LOAD = """
import importlib.util, json, sys
given = json.loads(sys.stdin.read())
sys.path[:] = given["places"]
sys.modules["peftkit"] = sys.modules["peft"] = None  # from here on neither can be imported
import torch
torch.set_num_threads(given["threads"])
found = importlib.util.spec_from_file_location("load", given["folder"] + "/load.py")
load = importlib.util.module_from_spec(found)
found.loader.exec_module(load)
model, tokenizer = load.load(given["folder"], given["base"])
"""
"""The first part of the process: the folder's own code loads it."""
LABELING = """
texts, pairs, size = given["texts"], given["pairs"], given["size"]
said = []
for first in range(0, len(texts), size):
    both = None if pairs is None else pairs[first : first + size]
    said += load.logits_of(model, tokenizer, texts[first : first + size], both).tolist()
print(json.dumps(said))
"""
"""The second part for a classifier: its logits."""
BITS = {None: 0.0, "4bit": 1e-2, "8bit": 1e-1}
"""How much a logit may differ between a quantized layer and its dequantized weight, relative to the
largest logit. In 8 bits bitsandbytes rounds the inputs as well."""

UNSCORED = {"metric": None, "before": None, "after": None, "scored_rows": 0}
"""The fields of a proof without a score."""


class Rows:
    """Texts, and the run's logits of them."""

    def __init__(self, run: RunDir, recipe: Recipe, texts: Sequence[str] | None) -> None:
        self.task: Task = recipe.task
        self.said_of = source_of(texts)
        self.columns = columns_to_compare(run, recipe, texts, SCORED_ROWS)
        self.logits = torch.empty(0)
        self.labels: list[Any] = []
        self.labeled = texts is None

    @torch.no_grad()
    def query(self, recipe: Recipe, loaded: LoadedModel, names: Sequence[str]) -> None:
        """Compute the run's logits, as `peftkit predict` does."""
        encoded = self.task.encode(self.columns, loaded.tokenizer, names, recipe.data.max_length)
        count = len(encoded["input_ids"])
        rows = [{key: column[i] for key, column in encoded.items()} for i in range(count)]
        module = loaded.module.eval()
        device = next(module.parameters()).device
        found = []
        for first in range(0, count, ROWS_A_BATCH):
            batch = loaded.batcher(rows[first : first + ROWS_A_BATCH])
            batch.pop("labels")
            found.append(module(**move_to_device(batch, device)).logits.float().cpu())
        self.logits, self.labels = torch.cat(found), list(encoded["labels"])

    def score(self, logits: Tensor, names: Sequence[str]) -> float | None:
        """The task's score; None without labels."""
        if not self.labeled:
            return None
        return headline(self.task, logits, self.labels, names, self.columns)

    def compare_with(self, folder: Path, base: Path | None, names: Sequence[str]) -> dict[str, Any]:
        """The folder's logits of the same texts, compared with the run's: fields of a `MergeProof`.

        Raises `RunError` if the folder cannot be loaded.
        """
        columns = {**self.columns, "text": self.task.texts_as_read(self.columns)}
        pairs = list(columns["text_pair"]) if "text_pair" in columns else None
        given = {"texts": list(columns["text"]), "pairs": pairs, "size": ROWS_A_BATCH}
        logits = torch.tensor(run_folder_code(folder, base, LABELING, given))
        found: dict[str, Any] = {**difference(self.logits, logits), "rows": len(logits)}
        before = self.score(self.logits, names)
        if before is not None:
            after = {"after": self.score(logits, names), "scored_rows": len(logits)}
            found |= {"metric": self.task.headline, "before": before, **after}
        return {**found, "texts": self.said_of}


def source_of(texts: Sequence[str] | None) -> str:
    """Where the compared texts are from, in words."""
    return "the run's held-out rows" if texts is None else "the given texts"


def columns_to_compare(
    run: RunDir, recipe: Recipe, texts: Sequence[str] | None, most: int
) -> dict[str, list[Any]]:
    """At most `most` of the run's held-out rows as columns, or all the given texts."""
    if texts is None:
        return {name: column[:most] for name, column in held_out_columns(run).items()}
    pairs = recipe.data.text_pair is not None
    chosen = [split_pair(text) if pairs else text for text in texts]
    return columns_of(chosen, 1, inputs_of(run.path))


def split_pair(line: str) -> tuple[str, str]:
    """A line of a file as a pair of texts.

    Raises `DataError` if it has no tab.
    """
    first, tab, second = line.partition("\t")
    if not tab:
        raise DataError(f"--verify: {line[:30]!r} is not a pair of texts - separate them by a tab")
    return first, second


class RunPredictions(Protocol):
    """A run's predictions, to be compared with those of a folder."""

    def compare_with(self, folder: Path, base: Path | None, names: Sequence[str]) -> dict[str, Any]:
        """The differences, as fields of a `MergeProof`."""


def prove(
    folder: Path,
    base: Path | None,
    rows: RunPredictions,
    names: Sequence[str],
    dtype: str,
    bits: str | None,
) -> MergeProof:
    """The proof, computed in a new process without peftkit and peft.

    Raises `RunError` if rounding does not explain the difference, or the folder cannot be loaded.
    """
    found = {**UNSCORED, **rows.compare_with(folder, base, names)}
    slack = max(ARITHMETIC[dtype], BITS[bits]) * max(1.0, found["largest_logit"])
    proof = MergeProof(**found, tolerance=slack, mean_tolerance=slack, computed_in=dtype)
    if not proof.largest <= proof.tolerance:  # NaN is not, either
        raise RunError(
            f"the exported folder's predictions differ from the run's: in {proof.rows} texts a "
            f"logit differs by {proof.largest:.3g} (mean {proof.mean:.3g}), more than rounding "
            f"explains ({proof.tolerance:.3g}); it was removed - use peftkit predict with the run"
        )
    if proof.greedy is not None and proof.greedy.different:
        numbers = ", ".join(map(str, proof.greedy.different[:5]))
        raise RunError(
            f"the exported folder's predictions differ from the run's: of {proof.rows} texts it "
            f"answers {len(proof.greedy.different)} differently (number {numbers} of "
            f"{proof.texts}); it was removed - use peftkit predict with the run"
        )
    return proof


def run_folder_code(folder: Path, base: Path | None, code: str, more: Mapping[str, Any]) -> Any:
    """What `code` prints after the folder's own code has loaded it; `more` is part of `given`."""
    ours = Path(__file__).parents[2]
    given = {
        "places": [place for place in sys.path if place and Path(place).resolve() != ours],
        "threads": torch.get_num_threads(),
        "folder": str(folder.resolve()),
        "base": str(base) if base is not None else None,
        **more,
    }
    environment = {
        **environment_without_launcher(),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", LOAD + code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=os.path.abspath(os.sep),
        env=environment,
    )
    if done.returncode:
        last = done.stderr.strip()[-2000:]
        raise RunError(
            f"the exported folder could not be loaded by its load.py, and was removed: {last} - "
            "fix that, or use --verify off"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])
