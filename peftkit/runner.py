"""The story of a run: data, model, training, evaluation, record."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from peftkit.curves import draw_curves
from peftkit.data import Splits
from peftkit.encoding import encode
from peftkit.errors import PeftkitError, RunError, RunStopped
from peftkit.evaluation import forward, predict, prediction_rows
from peftkit.model import Assembled, assemble, load_tokenizer
from peftkit.planning import predicted_peak_bytes
from peftkit.recipe import Recipe
from peftkit.record import (
    Cost,
    ParameterCount,
    Proof,
    RunFolder,
    RunRecord,
    WorldRecord,
    check_disk,
    folder_bytes,
)
from peftkit.recording import peak_bytes
from peftkit.sources import Source, find_model
from peftkit.tasks import Predictions, Scored
from peftkit.training import Outcome, fit
from peftkit.world import World, on_main, say

LARGEST_RELOAD_DIFFERENCE = 1e-5
"""Of logits, between the trained model and its artefact loaded elsewhere on the same machine."""
PROBED_ROWS = 8
BYTES_A_TRAINED_WEIGHT = 16
"""In a checkpoint: weight, fp32 master and two moments, rounded up."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "scikit-learn")


def train(
    recipe: Recipe, root: Path = Path("runs"), again: bool = False, inexact: bool = False
) -> RunRecord:
    """Train, evaluate and record `recipe`; resume it if it was interrupted, return it if it is done.

    `again` runs a finished recipe once more, beside the first; `inexact` lets a run be resumed in
    another world than it began in. Every rank returns the same record. Raises `PeftkitError`.
    """
    world = World.enter(recipe.training)
    model, data = on_main(world, lambda: (find_model(recipe.model), recipe.data.resolve()))
    folder = RunFolder.of(Path(root), recipe, model, data, again)
    if folder.finished:
        say(world, f"{folder.path} is finished: nothing to do (--again runs it once more)")
        return folder.record
    return Run(recipe, model, data, folder, world, inexact).make()


class Run:
    """One run in the making: the steps of `train` and what they share."""

    def __init__(
        self,
        recipe: Recipe,
        model: Source,
        data: Source,
        folder: RunFolder,
        world: World,
        inexact: bool,
    ) -> None:
        self.recipe, self.model, self.data = recipe, model, data
        self.folder, self.world, self.inexact = folder, world, inexact
        self.started = time.monotonic()

    def make(self) -> RunRecord:
        """Load, train, evaluate, prove, record; a failure is recorded too."""
        recipe, world = self.recipe, self.world
        splits = on_main_first(world, lambda: recipe.data.load(self.data, recipe.task.roles))
        names = recipe.task.label_names(splits)
        for note in splits.notes:
            say(world, f"note: {note}")
        tokenizer = load_tokenizer(self.model.location)
        examples = on_main_first(
            world, lambda: encode(recipe, splits, tokenizer, self.model, names)
        )
        assembled = assemble(recipe, self.model, tokenizer, names, world.precision)
        on_main(world, lambda: self._claim(assembled.parameters, names))
        try:
            outcome = fit(recipe, assembled, examples, self.folder, world)
            return self._conclude(splits, names, assembled, examples, outcome)
        except RunStopped:
            raise
        except (PeftkitError, torch.OutOfMemoryError) as error:
            on_main(world, lambda: self._fail(splits, assembled, str(error)))
            if isinstance(error, PeftkitError):
                raise
            raise RunError(f"out of memory: {error}") from error
        finally:
            self.folder.release()

    def _claim(self, parameters: ParameterCount, names: tuple[str, ...]) -> None:
        """Take the folder, unless the run began in another world or the disk is too small."""
        self.folder.claim(self.recipe, self.model, self.data)
        check_disk(self.folder.path, 3 * BYTES_A_TRAINED_WEIGHT * parameters.trainable)
        now = {"ranks": self.world.size, "threads": self.world.threads, "precision": self.world.precision}
        began = self.folder.description().get("world", now)
        exact = began == now
        if not exact and any(self.folder.checkpoints.glob("checkpoint-*")) and not self.inexact:
            self.folder.release()
            was = ", ".join(f"{k} {began[k]}" for k in now if began[k] != now[k])
            has = ", ".join(f"{k} {now[k]}" for k in now if began[k] != now[k])
            raise RunError(
                f"{self.folder.path}: the run began with {was} and cannot go on bit for bit with {has}"
                " - start it as before, or say --inexact (the record will say so too)"
            )
        if not exact and not self.inexact:  # nothing is trained yet: it simply begins anew
            exact, began = True, now
        known = self.folder.description().get("exact", True)
        self.folder.describe(world=now, names=list(names), exact=exact and known)

    def _conclude(
        self,
        splits: Splits,
        names: tuple[str, ...],
        assembled: Assembled,
        examples: dict[str, Any],
        outcome: Outcome,
    ) -> RunRecord:
        """Score the test split, save and prove the artefact, write the record."""
        recipe, world = self.recipe, self.world
        peak = peak_bytes()
        began = time.monotonic()
        predictions = predict(assembled, recipe.task, examples["test"], world)
        seconds = time.monotonic() - began
        majority = most_frequent(examples["train"]["labels"])
        scored = recipe.task.score(predictions, names, majority)
        if not world.is_main:
            return on_main(world, lambda: self.folder.record)
        self._save_artefact(assembled)
        proof = self._reload(assembled, examples, outcome.proof)
        cost = self._cost(outcome, seconds, peak, examples)
        self.folder.write_predictions(prediction_rows(splits, predictions, names))
        draw_curves(self.folder.logged(), self.folder.path)
        record = self._record(splits, assembled, scored, predictions, outcome, cost, proof)
        self.folder.finish(record)
        on_main(world, lambda: record)
        if record.status == "failed":
            raise RunError(f"{self.folder.path}: {record.reason}")
        return record

    def _save_artefact(self, assembled: Assembled) -> None:
        """What was trained, written beside and put in place at once."""
        beside = self.folder.path / "artefact.partial"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        self.recipe.strategy.save(assembled.module, beside)
        assembled.module.config.save_pretrained(beside)  # type: ignore[operator,union-attr]
        shutil.rmtree(self.folder.artefact, ignore_errors=True)
        beside.replace(self.folder.artefact)

    def _reload(self, assembled: Assembled, examples: dict[str, Any], proof: Proof) -> Proof:
        """Load the artefact on a fresh base in a fresh process and compare its logits."""
        if self.recipe.training.proof != "full":
            return proof
        rows = [dict(examples["test"][i]) for i in range(min(PROBED_ROWS, len(examples["test"])))]
        batches = [range(len(rows))]
        (_, probabilities, _), *_ = forward(assembled, self.recipe.task, rows, batches)
        probe = self.folder.path / "reload.json"
        probe.write_text(json.dumps({"rows": rows, "probabilities": probabilities.tolist()}))
        command = [sys.executable, "-m", "peftkit.reload", str(self.folder.path)]
        environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            command, capture_output=True, text=True, env={**without_ranks(), **environment}
        )
        probe.unlink()
        if done.returncode:
            raise RunError(f"the artefact cannot be loaded again: {done.stderr.strip()[-2000:]}")
        difference = float(done.stdout.strip().splitlines()[-1])
        status = proof.status if difference <= LARGEST_RELOAD_DIFFERENCE else "failed"
        return proof.model_copy(update={"reload_difference": difference, "status": status})

    def _cost(
        self, outcome: Outcome, seconds: float, peak: tuple[int, int | None], examples: dict[str, Any]
    ) -> Cost:
        """What the run took."""
        tokens = outcome.tokens * self.world.size
        longest = max(examples["train"]["length"])
        return Cost(
            train_seconds=outcome.seconds,
            evaluate_seconds=seconds,
            total_seconds=time.monotonic() - self.started,
            tokens=tokens,
            tokens_per_second=tokens / outcome.seconds,
            samples_per_second=outcome.samples / outcome.seconds,
            padding_share=1 - outcome.tokens / outcome.positions,
            peak_bytes=peak[0],
            peak_reserved_bytes=peak[1],
            predicted_peak_bytes=predicted_peak_bytes(
                self.recipe, self.model, outcome.micro_batch_size, longest, self.world.precision
            ),
            artefact_bytes=folder_bytes(self.folder.artefact),
        )

    def _record(
        self,
        splits: Splits,
        assembled: Assembled,
        scored: Scored,
        predictions: Predictions,
        outcome: Outcome,
        cost: Cost,
        proof: Proof,
    ) -> RunRecord:
        """Everything that is known of the run."""
        details = {**scored.details, "test_loss": predictions.loss}
        reason = reason_of(proof)
        return RunRecord(
            **self._known(splits, assembled),
            status="failed" if reason else "finished",
            reason=reason,
            scores=scored.scores,
            baseline=scored.baseline,
            details=details,
            validation=outcome.best,
            steps=outcome.steps,
            cost=cost,
            proof=proof,
            world=self._world(outcome.micro_batch_size),
            exact=outcome.exact,
        )

    def _fail(self, splits: Splits, assembled: Assembled, reason: str) -> None:
        """Record that the run failed; the same command tries it again."""
        self.folder.finish(RunRecord(**self._known(splits, assembled), status="failed", reason=reason))

    def _known(self, splits: Splits, assembled: Assembled) -> dict[str, Any]:
        """What is known of the run whether it succeeds or not."""
        return {
            "name": self.recipe.name,
            "digest": self.recipe.digest(self.model, self.data),
            "recipe": self.recipe.settings(),
            "model": self.model,
            "data": self.data,
            "rows": dict(splits.facts),
            "notes": [*splits.notes, *assembled.notes],
            "parameters": assembled.parameters,
            "headline": self.recipe.task.headline,
            "versions": versions(),
            "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def _world(self, micro: int) -> WorldRecord:
        """Where the run ran."""
        world = self.world
        return WorldRecord(
            ranks=world.size,
            threads=world.threads,
            precision=world.precision,
            sharding=world.sharding,
            device=world.device,
            micro_batch_size=micro,
        )


def on_main_first(world: World, work: Any) -> Any:
    """The result of `work` on every rank; rank 0 goes first and fills the caches."""
    on_main(world, lambda: bool(work()) if world.size > 1 else None)
    return work()


def most_frequent(labels: list[int]) -> int:
    """The most frequent label; the lowest of several."""
    return max(sorted(set(labels)), key=labels.count)


def reason_of(proof: Proof) -> str | None:
    """Why the proof failed, naming the tensors; None if it did not."""
    if proof.changed:
        return f"frozen tensors changed: {', '.join(proof.changed[:5])}"
    if proof.status == "failed" and proof.unmoved:
        return f"trained tensors never moved: {', '.join(proof.unmoved[:5])}"
    if proof.status == "failed":
        return f"the reloaded artefact's outputs differ by {proof.reload_difference:.3g}"
    return None


def without_ranks() -> dict[str, str]:
    """The environment without what a launcher put there for its ranks."""
    import os

    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {k: v for k, v in os.environ.items() if k not in launched and not k.startswith("TORCHELASTIC")}


def versions() -> dict[str, str]:
    """Versions of Python, peftkit and the libraries that can change a result."""
    found = {"python": platform.python_version()}
    for name in ("peftkit", *LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            found[name] = "not installed"
    return found
