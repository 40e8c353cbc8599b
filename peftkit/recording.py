"""The recorder: watches a run step by step, logs it, shows it, and decides when to save and stop."""

import importlib
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.checkpoints import facts_of, mark_complete, save_trained
from peftkit.recipe import Recipe
from peftkit.record import RunFolder
from peftkit.world import World, any_rank

if TYPE_CHECKING:
    from peftkit.training import Loop

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Recorder(TrainerCallback):
    """Counts, logs and shows; asks for evaluations, checkpoints and the end of training."""

    def __init__(self, recipe: Recipe, folder: RunFolder, world: World) -> None:
        self.recipe, self.folder, self.world = recipe, folder, world
        self.loop: Loop
        self.seconds = 0.0
        """Time in optimizer steps, over all processes of the run."""
        self.tokens = 0
        self.positions = 0
        self.stopped_by: int | None = None
        self._since = 0.0
        self._asked_to_stop: int | None = None
        self._done = False
        self._before: dict[int, Any] = {}
        self._display = Display(recipe, world)
        self._trackers: list[Any] = []

    def __enter__(self) -> "Recorder":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._stop_soon)
        if self.world.is_main:
            self._trackers = start_trackers(self.recipe, self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for tracker in self._trackers:
            tracker.finish()
        self._display.close()

    def _stop_soon(self, number: int, _: object) -> None:
        if self._asked_to_stop is not None:  # asked twice: whoever asks does not want to wait
            raise KeyboardInterrupt
        self._asked_to_stop = number

    def count(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of a micro-batch of this rank."""
        self.positions += inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        self.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()

    def paused(self, seconds: float) -> None:
        """Time since the last step that was not training."""
        self._since += seconds

    def best(self, history: list[dict[str, Any]]) -> dict[str, float]:
        """The evaluation with the best score so far: step, score, loss. Empty if there was none."""
        scored = [entry for entry in history if "eval_score" in entry]
        if not scored:
            return {}
        best = max(scored, key=lambda entry: (score_of(entry), -entry["step"]))
        return {"step": best["step"], "score": best["eval_score"], "loss": best["eval_loss"]}

    def go_on_from(self, facts: dict[str, Any]) -> None:
        """Add to what was counted before the run was interrupted."""
        self.seconds, self.tokens = facts["seconds"], facts["tokens"]
        self.positions = facts["positions"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Go on from what the checkpoint knew."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.global_step:
            self.go_on_from(facts_of(checkpoint))
        if self.world.is_main:
            self.folder.forget_after(state.global_step)
        self._display.start(state)
        self._since = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Decide whether to log, evaluate, save or stop after this step."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        training = self.recipe.training
        last = state.global_step >= state.max_steps
        steps_in_epoch = len(self.loop.order) // training.batch_size
        epoch_ends = state.global_step % steps_in_epoch == 0 or last
        has_validation = len(self.loop.eval_dataset) > 0  # type: ignore[arg-type]
        control.should_evaluate = has_validation and due(training.evaluate, state, epoch_ends)
        control.should_save = due(training.save_steps, state, epoch_ends)
        if any_rank(self.world, self._asked_to_stop is not None):
            self.stopped_by = self._asked_to_stop or signal.SIGTERM
            control.should_save = control.should_training_stop = True
            # at the last step the training itself is done: nothing is left to resume
            self.stopped_by = None if last else self.stopped_by

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
        rate = self.tokens * self.world.size / max(self.seconds, 1e-9)
        padding = 1 - self.tokens / max(1, self.positions)
        self._display.update(state, logs, rate, padding)
        for tracker in self._trackers:
            tracker.log({k: v for k, v in entry.items() if v is not None}, step=state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the weights if they are the best so far; stop when patience is at its end."""
        best = self.best(state.log_history)
        if best["step"] == state.global_step and self.world.is_main:
            save_trained(self.loop.assembled.module, Path(args.output_dir) / "best.safetensors")
        patience = self.recipe.training.patience
        since = [e for e in state.log_history if "eval_score" in e and e["step"] > best["step"]]
        if patience is not None and len(since) >= patience:
            control.should_training_stop = control.should_save = self._done = True
        self._since = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Mark the checkpoint as whole."""
        if self.world.is_main:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            done = self._done or state.global_step >= state.max_steps
            counted = {k: getattr(self, k) for k in ("seconds", "tokens", "positions")}
            mark_complete(checkpoint, {"done": done, **counted})
        self._since = time.monotonic()


def score_of(entry: dict[str, Any]) -> float:
    """An evaluation's score; one that is undefined counts as the worst."""
    return float("-inf") if entry["eval_score"] is None else float(entry["eval_score"])


def due(every: int | str, state: TrainerState, epoch_ends: bool) -> bool:
    """Whether something that happens `every` so many steps (or 'epoch') happens now."""
    if isinstance(every, int):
        return state.global_step % every == 0 or state.global_step >= state.max_steps
    return every == "epoch" and epoch_ends


def start_trackers(recipe: Recipe, folder: RunFolder) -> list[Any]:
    """accelerate's trackers of the recipe, started with its settings."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    started = []
    for name in recipe.training.track:
        kind = LOGGER_TYPE_TO_CLASS[name]
        place = {"logging_dir": str(folder.path / name)} if kind.requires_logging_directory else {}
        tracker = kind(folder.path.name, **place)
        tracker.start()
        started.append(tracker)
    return started


def peak_bytes() -> tuple[int, int | None]:
    """Largest memory so far: allocated and reserved on a GPU, else the resident set and None."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None


class Display:
    """A progress bar on a terminal, a line now and then elsewhere, nothing on other ranks."""

    LINES = 20
    """Lines over a whole run where there is no terminal."""

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.name = recipe.name
        self.shown = world.is_main
        self.bar: Any = None
        self._task: Any = None
        self._started = 0.0
        self._first = 0

    def start(self, state: TrainerState) -> None:
        """Begin at the state's step."""
        self._started, self._first = time.monotonic(), state.global_step
        if not (self.shown and sys.stderr.isatty()):
            return
        progress = importlib.import_module("rich.progress")
        console = importlib.import_module("rich.console").Console(stderr=True)
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[facts]}"),
            progress.TimeRemainingColumn(),
            console=console,
        )
        self._task = self.bar.add_task(
            self.name, total=state.max_steps, completed=state.global_step, facts=""
        )
        self.bar.start()

    def update(
        self, state: TrainerState, logs: dict[str, Any], tokens_per_second: float, padding: float
    ) -> None:
        """Show the step's loss, or an evaluation's score."""
        if not self.shown:
            return
        if "eval_loss" in logs:
            self._print(f"step {state.global_step}: validation score {logs['eval_score']:.4f}")
            return
        memory = peak_bytes()[0] / 2**30
        facts = (
            f"loss {logs['loss']:.4f}  {tokens_per_second:,.0f} tokens/s  "
            f"padding {padding:.0%}  {memory:.1f} GiB"
        )
        if self.bar is not None:
            self.bar.update(self._task, completed=state.global_step, facts=facts)
        elif state.global_step % max(1, state.max_steps // self.LINES) == 0:
            done = max(1, state.global_step - self._first)
            left = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step)
            self._print(f"step {state.global_step}/{state.max_steps}  {facts}  {left:.0f} s left")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()

    def _print(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)
