"""The pipeline of a run: data, model, training, evaluation, artifact, record."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from peftkit.config.recipe import Recipe
from peftkit.data.splits import Splits
from peftkit.errors import DiskError, PeftkitError, RunError, RunStopped
from peftkit.evaluation.baselines.cache import predict_untrained
from peftkit.evaluation.prediction import predict, prediction_rows
from peftkit.evaluation.scoring import evaluate
from peftkit.hub.source import Source
from peftkit.loading.model import LoadedModel, load_model, load_tokenizer, meta_model
from peftkit.planning.plan import estimate_memory
from peftkit.preprocessing.tokenization import checked, content_key, encode, noted
from peftkit.records.artifact import write_config, write_manifest
from peftkit.records.record import Cost, Proof, RunRecord, Tuning
from peftkit.records.run_dir import RunDir
from peftkit.runs.learning_curves import draw_learning_curves
from peftkit.runs.model_card import model_card
from peftkit.runs.reload_check import LARGEST_RELOAD_DIFFERENCE, reload_difference
from peftkit.runtime.distributed import (
    World,
    execution_environment,
    on_main,
    on_main_first,
    say,
    versions,
    world_record,
)
from peftkit.runtime.peak_memory import peak_bytes, reset_peak_bytes
from peftkit.storage.atomic_files import check_space, explain_disk_errors, folder_bytes, write_text
from peftkit.tasks.base import EvalSplit, Predictions, Scored
from peftkit.training.batch_size import is_out_of_memory, out_of_memory_error
from peftkit.training.callbacks import ShouldPrune
from peftkit.training.checkpoints import is_complete, list_checkpoints
from peftkit.training.integrity import reason_of
from peftkit.training.trainer import TrainingResult, fit

Peaks = tuple[int, int | None, int | None]
"""Peak memory in bytes: before evaluation, the allocator's own, and during evaluation."""
BYTES_PER_TRAINABLE = 16
"""Of a weight in a checkpoint: fp32 weight and master weight, and two moments."""


@dataclass(frozen=True)
class RunInputs:
    """The data and the model of a run."""

    splits: Splits
    names: tuple[str, ...]
    """Label names."""
    examples: dict[str, Any]
    """Tokenized rows by split."""
    loaded: LoadedModel
    untrained: dict[str, Predictions]
    """Predictions of the untrained base on the test rows, by baseline."""


class RunPipeline:
    """One process's work on a run, whose directory it has claimed: from the start or a
    checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        model: Source,
        data: Source,
        folder: RunDir,
        world: World,
        allow_inexact_resume: bool = False,
        tuning: Tuning | None = None,
    ) -> None:
        self.recipe, self.model, self.data = recipe, model, data
        self.folder, self.world, self.allow_inexact_resume = folder, world, allow_inexact_resume
        self.tuning = tuning
        self.should_prune: ShouldPrune | None = None

    def run(self) -> RunRecord:
        """Load, train, evaluate and record; failures are recorded too."""
        # finds incompatibilities before data are read; also estimates the peak memory later
        self.meta_model = meta_model(
            self.recipe, self.model.location, self.recipe.task.placeholder_names
        )
        inputs = self._load()
        with explain_disk_errors(self.folder.path):
            on_main(self.world, lambda: self._begin(inputs))
        try:
            with explain_disk_errors(self.folder.path):
                result = fit(
                    self.recipe,
                    inputs.loaded,
                    inputs.examples,
                    self.folder,
                    self.world,
                    self._eval_split(inputs, "validation", resamples=0),
                    self.should_prune,
                )
                inputs = replace(inputs, loaded=result.loaded)
                record = self._evaluate_and_record(inputs, result)
        except (RunStopped, DiskError):
            raise
        except Exception as error:
            known = out_of_memory_error(error) if is_out_of_memory(error) else error
            if isinstance(known, PeftkitError):
                self._fail(inputs, str(known))
                raise known from error
            raise
        if record.status == "failed":
            raise RunError(f"{self.folder.path}: {record.reason}")
        return record

    def _load(self) -> RunInputs:
        """Tokenize the data, and load the model with the strategy attached."""
        recipe, world = self.recipe, self.world
        tokenizer = load_tokenizer(self.model.location, recipe.task)
        splits = on_main_first(world, lambda: recipe.splits(self.data))
        names = recipe.task.label_names(splits)
        self.recipe = recipe = recipe.with_fitted_state(recipe.task.fit_on_train(splits))
        splits = checked(recipe, splits, tokenizer)
        examples = on_main_first(
            world, lambda: encode(recipe, splits, tokenizer, self.model, names)
        )
        splits = noted(recipe, splits, examples, tokenizer, names)
        for note in splits.notes:
            say(world, f"note: {note}")
        given = EvalSplit(
            splits.test,
            examples["test"],
            names,
            splits.train,
            fitted_state=recipe.task.fitted_state,
        )
        key = content_key(recipe, splits, self.model, names)
        untrained = predict_untrained(recipe, self.model, tokenizer, given, key, world)
        loaded = load_model(recipe, self.model, tokenizer, names, world.precision)
        for note in loaded.notes:
            say(world, f"note: {note}")
        return RunInputs(splits, names, examples, loaded, untrained)

    def _eval_split(self, inputs: RunInputs, split: str, **more: Any) -> EvalSplit:
        """What predictions for a split are scored against."""
        rows, examples = getattr(inputs.splits, split), inputs.examples[split]
        state = self.recipe.task.fitted_state
        return EvalSplit(rows, examples, inputs.names, fitted_state=state, **more)

    def _fit_on_validation(self, inputs: RunInputs) -> None:
        """Fit the task's thresholds, on every rank alike."""
        task, examples = self.recipe.task, inputs.examples["validation"]
        if task.fitted_on_validation and len(examples):
            predictions = predict(inputs.loaded, task, examples, self.world)
            found = task.fit_on_validation(predictions, self._eval_split(inputs, "validation"))
            self.recipe = self.recipe.with_fitted_state({**task.fitted_state, **found})

    def _begin(self, inputs: RunInputs) -> None:
        """Describe the run in its directory.

        Raises `RunError` if the environment is not the one that it began in, or the disk is too
        small.
        """
        folder, now = self.folder, execution_environment(self.world)
        folder.begin(self.recipe, self.model, self.data)
        trained = inputs.loaded.parameters.trainable
        check_space(folder.path, 3 * BYTES_PER_TRAINABLE * trained)
        known = folder.description()
        began = known.get("world", now)
        if not any(map(is_complete, list_checkpoints(folder.checkpoints))):
            # nothing is trained yet: start from scratch, with the micro-batch size too
            read = [r for r in self.recipe.task.inputs if r in inputs.splits.train.column_names]
            facts: dict[str, Any] = {"names": inputs.names, "inputs": read}
            folder.describe(world=now, **facts, exact=True, micro_batch_size=None, engine=None)
            return
        if began != now and not self.allow_inexact_resume:
            was = ", ".join(f"{k} {began.get(k)}" for k in now if began.get(k) != now[k])
            has = ", ".join(f"{k} {now[k]}" for k in now if began.get(k) != now[k])
            raise RunError(
                f"{folder.path}: the run began with {was}, and cannot be resumed exactly with "
                f"{has} - use the same as before, or add --allow-inexact-resume (the record will "
                "have a note)"
            )
        folder.describe(world=now, exact=began == now and known["exact"])

    def _evaluate_and_record(self, inputs: RunInputs, result: TrainingResult) -> RunRecord:
        """Score the test split on all ranks; rank 0 writes the results."""
        peak, was_reset, started = peak_bytes(), reset_peak_bytes(), time.monotonic()
        self._fit_on_validation(inputs)
        given = self._eval_split(inputs, "test", train=inputs.splits.train)
        predictions, scored = evaluate(
            self.recipe, inputs.loaded, given, inputs.untrained, self.world
        )
        evaluation_peak = peak_bytes()[0] if was_reset and scored else None
        seconds = time.monotonic() - started

        def write_results() -> RunRecord:
            self.folder.describe(fitted_state=dict(self.recipe.task.fitted_state))
            self._save_artifact(inputs)
            proof = self._verify_artifact(inputs, result.proof)
            cost = self._cost(inputs, result, seconds, (*peak, evaluation_peak))
            if predictions is not None:
                task = self.recipe.task
                self.folder.write_predictions(prediction_rows(task, predictions, given))
            metric, unit = self.recipe.task.validation_metric, self.recipe.task.loss_unit
            folder = self.folder.path
            draw_learning_curves(self.folder.logged(), folder, metric, folder.name, unit)
            record = self._record(inputs, scored, predictions, result, cost, proof)
            if record.status == "finished":
                write_text(self.folder.artifact / "README.md", model_card(record))
            return self.folder.finish(record)

        return on_main(self.world, write_results)

    def _save_artifact(self, inputs: RunInputs) -> None:
        """Save what was trained; the directory is replaced atomically."""
        partial = self.folder.path / "artifact.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        module = inputs.loaded.module
        self.recipe.strategy.save(module, partial)
        write_config(partial, module, self.recipe.task.fitted_state)
        write_manifest(partial, self.recipe, self.model, inputs.names)
        shutil.rmtree(self.folder.artifact, ignore_errors=True)
        partial.replace(self.folder.artifact)

    def _verify_artifact(self, inputs: RunInputs, proof: Proof) -> Proof:
        """The proof, completed by the difference to the artifact loaded in a new process."""
        if self.recipe.training.proof != "full":
            return proof
        split = inputs.examples["test" if len(inputs.examples["test"]) else "train"]
        difference = reload_difference(self.recipe, inputs.loaded, split, self.folder.path)
        status = proof.status if difference <= LARGEST_RELOAD_DIFFERENCE else "failed"
        return proof.model_copy(update={"reload_difference": difference, "status": status})

    def _cost(
        self, inputs: RunInputs, result: TrainingResult, seconds: float, peaks: Peaks
    ) -> Cost:
        """The time and memory of the run."""
        longest = max(inputs.examples["train"]["length"])
        micro, precision = result.micro_batch_size, self.world.precision
        return Cost(
            train_seconds=result.seconds,
            evaluate_seconds=seconds,
            validate_seconds=result.validation_seconds,
            total_seconds=result.earlier_seconds + time.monotonic() - self.folder.opened,
            tokens=result.tokens,
            tokens_per_second=result.tokens / result.seconds,
            samples_per_second=result.samples / result.seconds,
            padding_share=1 - result.tokens / result.positions,
            peak_bytes=peaks[0],
            peak_reserved_bytes=peaks[1],
            peak_evaluate_bytes=peaks[2],
            predicted_peak_bytes=estimate_memory(
                self.recipe, *self.meta_model, micro, longest, precision
            ).total,
            artifact_bytes=folder_bytes(self.folder.artifact),
        )

    def _record(
        self,
        inputs: RunInputs,
        scored: Scored | None,
        predictions: Predictions | None,
        result: TrainingResult,
        cost: Cost,
        proof: Proof,
    ) -> RunRecord:
        """The record of the run."""
        reason = reason_of(proof)
        fields: dict[str, Any] = self._common_fields(inputs)
        fields["notes"] += result.notes
        if scored is not None and predictions is not None:
            fields |= {part: getattr(scored, part) for part in ("scores", "baseline", "baselines")}
            fields["notes"] += scored.notes
            fields["details"] = {**scored.details, "test_loss": predictions.loss}
        return RunRecord(
            **fields,
            status="failed" if reason else "finished",
            reason=reason,
            validation=result.best,
            steps=result.steps,
            cost=cost,
            proof=proof,
            world=world_record(self.world, self.recipe.training, result.micro_batch_size),
            engine=result.engine,
            exact=self.folder.description()["exact"],
        )

    def _fail(self, inputs: RunInputs, reason: str) -> None:
        """Record that the run failed; the same command repeats it.

        Without communication: a rank may fail alone, while others wait elsewhere.
        """
        if self.world.is_main:
            with suppress(OSError):  # a full disk may be the reason, which is raised anyway
                fields = self._common_fields(inputs)
                self.folder.finish(RunRecord(**fields, status="failed", reason=reason))

    def _common_fields(self, inputs: RunInputs) -> dict[str, Any]:
        """The fields of the record that a failed run has too."""
        task = self.recipe.task
        fitted = task.fitted_state_notes(task.fitted_state)
        return {
            "name": self.recipe.name,
            "digest": self.recipe.digest(self.model, self.data),
            "recipe": self.recipe.settings(),
            "model": self.model,
            "data": self.data,
            "rows": dict(inputs.splits.facts),
            "notes": [*inputs.splits.notes, *inputs.loaded.notes, *fitted],
            "parameters": inputs.loaded.parameters,
            "tuning": self.tuning,
            "headline": self.recipe.task.headline,
            "labels": list(inputs.names),
            "versions": versions(),
            "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
