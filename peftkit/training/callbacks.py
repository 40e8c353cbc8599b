"""The callback that logs a run, and decides when to evaluate, save and stop."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.loading.model import LoadedModel
from peftkit.metrics.registry import gain
from peftkit.preprocessing.batching import Order
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World, any_rank, max_over_ranks, sum_over_ranks
from peftkit.training.checkpoints import (
    best_weights_path,
    mark_complete,
    read_manifest,
    remove_checkpoints_after,
    remove_other_best_weights,
    save_trained,
)
from peftkit.training.optimizer import MasterWeightAdamW
from peftkit.training.step_progress import StepProgress

ShouldPrune = Callable[[int, float | None], bool]
"""Called with the step and the score of each evaluation: whether to stop the run."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_BETWEEN_SIGNALS = 2.0
"""A second signal within this time is not from the user: torchrun forwards the terminal's signal,
which its ranks have received already."""


class WatchedTrainer(Protocol):
    """The attributes of the Trainer that the callback reads."""

    order: Order
    eval_dataset: Any
    last_loss: float
    adamw: MasterWeightAdamW
    loaded: LoadedModel


class RecordingCallback(TrainerCallback):
    """Counts tokens, logs, shows progress, and controls evaluations, checkpoints and early
    stopping."""

    def __init__(self, recipe: Recipe, folder: RunDir, world: World) -> None:
        self.recipe, self.folder, self.world = recipe, folder, world
        self.trainer: WatchedTrainer
        self.should_prune: ShouldPrune | None = None
        self.seconds = 0.0
        """Time in optimizer steps, over all processes of the run."""
        self.validation_seconds = 0.0
        """Time in evaluations of the validation split, over all processes of the run."""
        self.earlier_seconds = 0.0
        """Total time of earlier processes of the run, up to the checkpoint."""
        self.received_signal: int | None = None
        """The signal that this rank has received."""
        self._tokens = 0
        self._positions = 0
        self._since = 0.0
        self._received_at = 0.0
        self._done = False
        self._before: dict[int, Any] = {}
        self._progress = StepProgress(recipe.name, world.is_main)
        self._trackers: list[Any] = []

    def __enter__(self) -> "RecordingCallback":
        # Python allows signal handlers in the main thread only
        handled = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        for number in handled:
            self._before[number] = signal.signal(number, self._on_signal)
        if self.world.is_main:
            self._trackers = start_trackers(self.recipe, self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for tracker in self._trackers:
            tracker.finish()
        self._progress.stop()

    def _on_signal(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self.received_signal is None:
            self.received_signal, self._received_at = number, now
            if self.world.is_main:  # print() is not reentrant
                os.write(2, b"stopping after this step; press again to stop immediately\n")
        elif now - self._received_at > SECONDS_BETWEEN_SIGNALS:
            raise KeyboardInterrupt

    def signal_on_any_rank(self) -> int | None:
        """The signal that any rank has received; all ranks must call it together."""
        return max_over_ranks(self.world, self.received_signal or 0) or None

    def count(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of a micro-batch of this rank."""
        targets = inputs.get("decoder_input_ids")
        if targets is not None:
            self._positions += targets.numel()
            self._tokens += len(inputs["read_positions"])
        self._positions += inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        self._tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()

    def token_counts(self) -> dict[str, int]:
        """Tokens, and positions including padding, over all ranks; all ranks must call it
        together."""
        return {
            "tokens": sum_over_ranks(self.world, self._tokens),
            "positions": sum_over_ranks(self.world, self._positions),
        }

    def add_validation_seconds(self, seconds: float) -> None:
        """Count `seconds` as validation instead of training time."""
        self.validation_seconds += seconds
        self._since += seconds

    def best(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """The best evaluation so far: its step, score and loss; empty if there was none.

        Each evaluation is compared with the best of those before it, whose weights are the only
        ones kept: so the result is the same whether or not the run was interrupted.
        """
        scored = scored_in(history)
        if not scored:
            return {}
        metric = self.recipe.task.validation_metric
        best = reduce(lambda old, new: new if is_better(new, old, metric) else old, scored)
        return {"step": best["step"], "score": best["eval_score"], "loss": best["eval_loss"]}

    def notes(self, history: list[dict[str, Any]]) -> tuple[str, ...]:
        """A note on evaluations without a defined score, if there were any."""
        scored = scored_in(history)
        without = sum(entry["eval_score"] is None for entry in scored)
        if not without:
            return ()
        share = f"{self.recipe.task.validation_metric} is undefined in {without} of {len(scored)}"
        return (f"validation: {share} evaluations, which were compared by loss",)

    def restore_counts(self, facts: dict[str, Any]) -> None:
        """Add the counts of the processes before an interruption."""
        self.seconds, self.earlier_seconds = facts["seconds"], facts["total_seconds"]
        self.validation_seconds = facts["validating"]
        if self.world.is_main:  # they are sums over all ranks
            self._tokens, self._positions = facts["tokens"], facts["positions"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restore the counts of the checkpoint, and remove logs and checkpoints of later steps."""
        if state.global_step:
            self.restore_counts(
                read_manifest(self.folder.checkpoints / f"checkpoint-{state.global_step}")
            )
        if self.world.is_main:
            self.folder.forget_after(state.global_step)
            remove_checkpoints_after(self.folder.checkpoints, state.global_step)
        self._progress.start(state.global_step, state.max_steps)
        self._since = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Decide whether to evaluate, save or stop after this step.

        Raises `RunError` if the loss or its gradient is not finite on any rank.
        """
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        self._check_numbers(state.global_step)
        training = self.recipe.training
        last = state.global_step >= state.max_steps
        steps_in_epoch = len(self.trainer.order) // training.batch_size
        epoch_ends = state.global_step % steps_in_epoch == 0 or last
        has_validation = len(self.trainer.eval_dataset) > 0
        control.should_evaluate = has_validation and due(training.evaluate, state, epoch_ends)
        control.should_save = due(training.save_steps, state, epoch_ends)
        if any_rank(self.world, self.received_signal is not None):
            control.should_save = control.should_training_stop = True

    def _check_numbers(self, step: int) -> None:
        loss, norm = self.trainer.last_loss, self.trainer.adamw.grad_norm
        if any_rank(self.world, not (math.isfinite(loss) and math.isfinite(norm))):
            raise RunError(
                f"the loss or its gradient is not finite at step {step} (loss {loss:.4g}, norm "
                f"{norm:.4g}) - use a lower training.lr (now {self.recipe.lr()}) or "
                "training.precision=fp32"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Log a line, and update the progress bar and the trackers."""
        if not logs or "train_runtime" in logs or not self.world.is_main:
            return
        entry = {"step": state.global_step, **logs}
        if "loss" in logs:
            entry["grad_norm"] = self.trainer.adamw.grad_norm
        self.folder.log(entry)
        rate = self._tokens * self.world.size / max(self.seconds, 1e-9)
        padding = 1 - self._tokens / max(1, self._positions)
        self._progress.update(state.global_step, logs, rate, padding)
        for tracker in self._trackers:
            tracker.log({k: v for k, v in entry.items() if v is not None}, step=state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the weights if they are the best so far; stop if patience has run out or the trial
        is pruned."""
        best, training = self.best(state.log_history), self.recipe.training
        if training.keep == "best" and best["step"] == state.global_step and self.world.is_main:
            save_trained(
                self.trainer.loaded.module, best_weights_path(self.folder.checkpoints, best["step"])
            )
        scored = scored_in(state.log_history)
        since = [entry for entry in scored if entry["step"] > best["step"]]
        out_of_patience = training.patience is not None and len(since) >= training.patience
        latest = scored[-1]
        if out_of_patience or (
            self.should_prune and self.should_prune(state.global_step, latest["eval_score"])
        ):
            control.should_training_stop = control.should_save = self._done = True
        self._since = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Mark the checkpoint as complete, once every rank has written its files."""
        facts = {
            "done": self._done or state.global_step >= state.max_steps,
            "seconds": self.seconds,
            "validating": self.validation_seconds,
            "total_seconds": self.earlier_seconds + time.monotonic() - self.folder.opened,
            **self.token_counts(),  # waits for all ranks
        }
        if self.world.is_main:
            folder = self.folder.checkpoints
            mark_complete(folder / f"checkpoint-{state.global_step}", facts)
            remove_other_best_weights(folder, self.best(state.log_history).get("step", 0))
        self._since = time.monotonic()


def scored_in(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among the entries of a log."""
    return [entry for entry in history if "eval_score" in entry]


def is_better(new: dict[str, Any], old: dict[str, Any], metric: str) -> bool:
    """Whether an evaluation is better than an earlier one: by score, or by loss if one has no
    score. If the losses are undefined too, the later one is."""
    scores = new["eval_score"], old["eval_score"]
    if None not in scores:
        return gain(metric, float(scores[0])) > gain(metric, float(scores[1]))
    losses = new["eval_loss"], old["eval_loss"]
    return None in losses or losses[0] < losses[1]


def due(every: int | str, state: TrainerState, epoch_ends: bool) -> bool:
    """Whether something that happens `every` N steps (or 'epoch') is due now."""
    if isinstance(every, int):
        return state.global_step % every == 0 or state.global_step >= state.max_steps
    return every == "epoch" and epoch_ends


def start_trackers(recipe: Recipe, folder: RunDir) -> list[Any]:
    """Start accelerate's trackers of `training.report_to`."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    started = []
    for name in recipe.training.report_to:
        kind = LOGGER_TYPE_TO_CLASS[name]
        place: dict[str, Path] = {}
        if kind.requires_logging_directory:
            place["logging_dir"] = folder.path / name
        tracker = kind(folder.path.name, **place)
        tracker.start()
        started.append(tracker)
    return started
