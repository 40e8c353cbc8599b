"""The recorder: watches a run step by step, logs it, and decides when to save and stop."""

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
from peftkit.runtime.distributed import World, any_rank, highest, summed
from peftkit.training.checkpoints import (
    best_weights,
    facts_of,
    forget_best_but,
    forget_checkpoints_after,
    mark_complete,
    save_trained,
)
from peftkit.training.optimizer import MasterAdamW
from peftkit.training.step_progress import StepProgress

ShouldPrune = Callable[[int, float | None], bool]
"""Called with the step and the score of each evaluation: whether to stop the run."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_BETWEEN_SIGNALS = 2.0
"""Within these a second signal is the first one's echo: torchrun passes on what a terminal has
sent to its ranks already."""


class TrainingLoop(Protocol):
    """What the recorder reads of the loop that it watches."""

    order: Order
    eval_dataset: Any
    last_loss: float
    masters: MasterAdamW
    assembled: LoadedModel


class Recorder(TrainerCallback):
    """Counts, logs and shows; asks for evaluations, checkpoints and the end of training."""

    def __init__(self, recipe: Recipe, folder: RunDir, world: World) -> None:
        self.recipe, self.folder, self.world = recipe, folder, world
        self.loop: TrainingLoop
        self.should_prune: ShouldPrune | None = None
        self.seconds = 0.0
        """Time in optimizer steps, over all processes of the run."""
        self.validating = 0.0
        """Seconds in evaluations of the validation split, over all processes of the run."""
        self.earlier_seconds = 0.0
        """What earlier processes of the run took, all in all, up to the checkpoint."""
        self.asked_to_stop: int | None = None
        """The signal that this rank was sent."""
        self._tokens = 0
        self._positions = 0
        self._since = 0.0
        self._asked_at = 0.0
        self._done = False
        self._before: dict[int, Any] = {}
        self._progress = StepProgress(recipe.name, world.is_main)
        self._trackers: list[Any] = []

    def __enter__(self) -> "Recorder":
        # Python allows signal handlers in the main thread alone
        heeded = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        for number in heeded:
            self._before[number] = signal.signal(number, self._stop_soon)
        if self.world.is_main:
            self._trackers = start_trackers(self.recipe, self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for tracker in self._trackers:
            tracker.finish()
        self._progress.stop()

    def _stop_soon(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self.asked_to_stop is None:
            self.asked_to_stop, self._asked_at = number, now
            if self.world.is_main:  # print() may be in the middle of a line
                os.write(2, b"stopping after this step; once more stops at once\n")
        elif now - self._asked_at > SECONDS_BETWEEN_SIGNALS:
            raise KeyboardInterrupt

    def stopped_by(self) -> int | None:
        """The signal that any rank was sent, on every rank."""
        return highest(self.world, self.asked_to_stop or 0) or None

    def count(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of a micro-batch of this rank."""
        targets = inputs.get("decoder_input_ids")
        if targets is not None:
            self._positions += targets.numel()
            self._tokens += len(inputs["read_positions"])
        self._positions += inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        self._tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()

    def counted(self) -> dict[str, int]:
        """Tokens, and positions with padding, of all ranks; all ranks must call it together."""
        return {
            "tokens": summed(self.world, self._tokens),
            "positions": summed(self.world, self._positions),
        }

    def validated(self, seconds: float) -> None:
        """Time since the last step that was no training, but went into validation."""
        self.validating += seconds
        self._since += seconds

    def best(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """The best evaluation so far: step, score, loss. Empty if there was none.

        Each is held against the best of those before it, whose weights alone are kept: so the
        history of a run says the same before and after it was interrupted.
        """
        scored = scored_in(history)
        if not scored:
            return {}
        metric = self.recipe.task.chosen_by
        best = reduce(lambda old, new: new if is_better(new, old, metric) else old, scored)
        return {"step": best["step"], "score": best["eval_score"], "loss": best["eval_loss"]}

    def notes(self, history: list[dict[str, Any]]) -> tuple[str, ...]:
        """How often the validation split gave no score, and what decided instead."""
        scored = scored_in(history)
        without = sum(entry["eval_score"] is None for entry in scored)
        if not without:
            return ()
        said = f"{self.recipe.task.chosen_by} is undefined in {without} of {len(scored)}"
        return (f"validation: {said} evaluations; between those and others the lower loss decided",)

    def go_on_from(self, facts: dict[str, Any]) -> None:
        """Add to what was counted before the run was interrupted."""
        self.seconds, self.earlier_seconds = facts["seconds"], facts["total_seconds"]
        self.validating = facts["validating"]
        if self.world.is_main:  # the facts are sums over all ranks
            self._tokens, self._positions = facts["tokens"], facts["positions"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Go on from what the checkpoint knew."""
        if state.global_step:
            self.go_on_from(facts_of(self.folder.checkpoints / f"checkpoint-{state.global_step}"))
        if self.world.is_main:
            self.folder.forget_after(state.global_step)
            forget_checkpoints_after(self.folder.checkpoints, state.global_step)
        self._progress.start(state.global_step, state.max_steps)
        self._since = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Decide whether to evaluate, save or stop after this step.

        Raises `RunError` when the loss or its gradient is not a number on any rank.
        """
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        self._check_numbers(state.global_step)
        training = self.recipe.training
        last = state.global_step >= state.max_steps
        steps_in_epoch = len(self.loop.order) // training.batch_size
        epoch_ends = state.global_step % steps_in_epoch == 0 or last
        has_validation = len(self.loop.eval_dataset) > 0
        control.should_evaluate = has_validation and due(training.evaluate, state, epoch_ends)
        control.should_save = due(training.save_steps, state, epoch_ends)
        if any_rank(self.world, self.asked_to_stop is not None):
            control.should_save = control.should_training_stop = True

    def _check_numbers(self, step: int) -> None:
        loss, norm = self.loop.last_loss, self.loop.masters.gradient_norm
        if any_rank(self.world, not (math.isfinite(loss) and math.isfinite(norm))):
            raise RunError(
                f"the loss or its gradient is not a number at step {step} (loss {loss:.4g}, norm "
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
        """Write a line, move the bar, tell the trackers."""
        if not logs or "train_runtime" in logs or not self.world.is_main:
            return
        entry = {"step": state.global_step, **logs}
        if "loss" in logs:
            entry["grad_norm"] = self.loop.masters.gradient_norm
        self.folder.log(entry)
        rate = self._tokens * self.world.size / max(self.seconds, 1e-9)
        padding = 1 - self._tokens / max(1, self._positions)
        self._progress.update(state.global_step, logs, rate, padding)
        for tracker in self._trackers:
            tracker.log({k: v for k, v in entry.items() if v is not None}, step=state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the weights if they are the best so far; stop without hope of better ones."""
        best, training = self.best(state.log_history), self.recipe.training
        if training.keep == "best" and best["step"] == state.global_step and self.world.is_main:
            save_trained(
                self.loop.assembled.module, best_weights(self.folder.checkpoints, best["step"])
            )
        scored = scored_in(state.log_history)
        since = [entry for entry in scored if entry["step"] > best["step"]]
        impatient = training.patience is not None and len(since) >= training.patience
        latest = scored[-1]
        if impatient or (
            self.should_prune and self.should_prune(state.global_step, latest["eval_score"])
        ):
            control.should_training_stop = control.should_save = self._done = True
        self._since = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Mark the checkpoint as whole, once every rank has written its part."""
        facts = {
            "done": self._done or state.global_step >= state.max_steps,
            "seconds": self.seconds,
            "validating": self.validating,
            "total_seconds": self.earlier_seconds + time.monotonic() - self.folder.opened,
            **self.counted(),  # waits for all ranks
        }
        if self.world.is_main:
            folder = self.folder.checkpoints
            mark_complete(folder / f"checkpoint-{state.global_step}", facts)
            forget_best_but(folder, self.best(state.log_history).get("step", 0))
        self._since = time.monotonic()


def scored_in(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among the lines of a log."""
    return [entry for entry in history if "eval_score" in entry]


def is_better(new: dict[str, Any], old: dict[str, Any], metric: str) -> bool:
    """Whether an evaluation is better than one before it: by their scores, or by their losses where
    one of them has no score. Where losses are unknown too nothing speaks for the older weights."""
    scores = new["eval_score"], old["eval_score"]
    if None not in scores:
        return gain(metric, float(scores[0])) > gain(metric, float(scores[1]))
    losses = new["eval_loss"], old["eval_loss"]
    return None in losses or losses[0] < losses[1]


def due(every: int | str, state: TrainerState, epoch_ends: bool) -> bool:
    """Whether something that happens `every` so many steps (or 'epoch') happens now."""
    if isinstance(every, int):
        return state.global_step % every == 0 or state.global_step >= state.max_steps
    return every == "epoch" and epoch_ends


def start_trackers(recipe: Recipe, folder: RunDir) -> list[Any]:
    """accelerate's trackers of the recipe, started with its settings."""
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
