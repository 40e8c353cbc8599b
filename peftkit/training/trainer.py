"""Training: one recipe's steps through `transformers.Trainer`, exact, restartable and watched."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerState

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError, RunStopped
from peftkit.evaluation.prediction import first_batches, predict
from peftkit.loading.model import LoadedModel
from peftkit.preprocessing.batching import Order
from peftkit.records.record import Engine, Proof
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World, say, share_of_batch
from peftkit.strategies.base import TrainingHook, trainable
from peftkit.tasks.base import EvalSplit
from peftkit.training.batch_size import fitting_micro_batch
from peftkit.training.callbacks import Recorder, ShouldPrune
from peftkit.training.checkpoints import (
    TRAINED,
    best_weights,
    facts_of,
    latest,
    load_state,
    load_trained,
    save_trained,
    step_of,
    unreadable,
)
from peftkit.training.integrity import IntegrityCheck
from peftkit.training.optimizer import MasterAdamW, rate_factors, warmup_steps
from peftkit.training.packing import engine_of_run, using
from peftkit.training.trainer_arguments import trainer_arguments


@dataclass(frozen=True)
class Outcome:
    """What training left behind; the model itself is trained in place."""

    assembled: LoadedModel
    """What was trained, on the engine that was chosen."""
    engine: Engine
    steps: int
    micro_batch_size: int
    best: dict[str, float | None]
    proof: Proof
    seconds: float
    """In optimizer steps, over all processes of the run."""
    validating_seconds: float
    """In evaluations of the validation split, likewise."""
    earlier_seconds: float
    """What earlier processes of the run took, all in all."""
    tokens: int
    positions: int
    samples: int
    notes: tuple[str, ...] = ()


def fit(
    recipe: Recipe,
    assembled: LoadedModel,
    examples: Any,
    folder: RunDir,
    world: World,
    validation: EvalSplit,
    should_prune: ShouldPrune | None = None,
) -> Outcome:
    """Train `assembled` by the recipe, from the last whole checkpoint in `folder` if there is one,
    until its steps are done or `should_prune` says so, scored on `validation`.

    Raises `RunStopped` after a signal, `RunError` when the loss is not a number or the recipe asks
    for more than the data has.
    """
    training = recipe.training
    check_rows(recipe, examples)
    share = share_of_batch(training.batch_size, world.size)
    recipe.strategy.prepare(assembled.module, lambda: first_batches(recipe, assembled, examples))
    witness = IntegrityCheck(assembled.module)
    micro = fitting_micro_batch(recipe, assembled, examples["train"], share, folder, world)
    engine = engine_of_run(recipe, assembled, examples["train"], micro, folder, world)
    if assembled.batcher.packed:
        assembled = using(assembled, engine.used)
    loop = Loop(recipe, assembled, examples, folder, world, micro, share // micro, validation)
    loop.recorder.should_prune = should_prune
    loop.go_on()
    recorder, state = loop.recorder, loop.state
    best = recorder.best(state.log_history)
    rising = warmup_steps(training.warmup_ratio, state.max_steps)
    proof = witness.verify(loop.masters.masters, rising, state)
    if training.keep == "best" and best and best["step"] < state.global_step:
        load_trained(assembled.module, best_weights(folder.checkpoints, int(best["step"])))
    return Outcome(
        assembled=assembled,
        engine=engine,
        steps=state.global_step,
        micro_batch_size=micro,
        best=best,
        proof=proof,
        seconds=recorder.seconds,
        validating_seconds=recorder.validating,
        earlier_seconds=recorder.earlier_seconds,
        samples=state.global_step * training.batch_size,
        notes=recorder.notes(state.log_history),
        **recorder.counted(),
    )


def check_rows(recipe: Recipe, examples: Any) -> None:
    """Refuse a batch larger than the train split, and patience with nothing to wait for."""
    rows, training = len(examples["train"]), recipe.training
    if rows < training.batch_size:
        raise RunError(
            f"training.batch_size={training.batch_size} is more than the {rows} examples to train "
            f"on - use training.batch_size={rows} or less"
        )
    if training.patience and not len(examples["validation"]):
        raise RunError(
            f"training.patience={training.patience} needs a validation split, and there is none "
            "- set data.validation or leave patience out"
        )


class Loop(Trainer):
    """A `Trainer` whose data order, optimizer, checkpoints and evaluation are peftkit's.

    Each override is of a public method but for `_load_from_checkpoint`, which has no public twin.
    """

    def __init__(
        self,
        recipe: Recipe,
        assembled: LoadedModel,
        examples: Any,
        folder: RunDir,
        world: World,
        micro: int,
        accumulation: int,
        validation: EvalSplit,
    ) -> None:
        training, train = recipe.training, examples["train"]
        self.recipe, self.assembled, self.folder, self.world = recipe, assembled, folder, world
        self.order = Order(
            list(train["length"]),
            training.batch_size,
            training.seed,
            training.order == "length_grouped",
        )
        self.validation = validation
        self.masters: MasterAdamW
        self.training_hook: TrainingHook | None = None
        self.last_loss = 0.0
        """Of this rank's last micro-batch; one that is no number stays."""
        self.recorder = Recorder(recipe, folder, world)
        super().__init__(
            model=assembled.module,
            args=trainer_arguments(recipe, folder, world, micro, accumulation),
            train_dataset=train,
            eval_dataset=examples["validation"],
            data_collator=assembled.batcher,
            compute_loss_func=self.loss,
            callbacks=[self.recorder],
        )
        self.remove_callback(PrinterCallback)
        self.recorder.loop = self

    def go_on(self) -> None:
        """Train from where the run stands; a training that is done is only taken up."""
        checkpoint = latest(self.folder.checkpoints, lambda message: say(self.world, message))
        try:
            if checkpoint is not None and facts_of(checkpoint)["done"]:
                self.restore_finished(checkpoint)
                return
            if checkpoint is not None:
                say(self.world, f"resuming at step {step_of(checkpoint)}")
            with self.recorder:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except UnpicklingError as error:  # only the optimizer's and random states are read so
            raise unreadable(checkpoint or self.folder.checkpoints, error) from error
        if number := self.recorder.stopped_by():
            raise RunStopped(
                f"stopped at step {self.state.global_step} of {self.state.max_steps}; a checkpoint "
                f"is in {self.folder.checkpoints} - the same command goes on from it",
                number,
            )

    def restore_finished(self, checkpoint: Path) -> None:
        """Take up a run whose training was done, and only the scoring was cut short."""
        load_trained(self.assembled.module, checkpoint / TRAINED)
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.create_optimizer_and_scheduler(self.state.max_steps)
        self.masters.load_state_dict(load_state(checkpoint / "optimizer.pt"))
        self.recorder.go_on_from(facts_of(checkpoint))
        say(self.world, f"trained already ({self.state.global_step} steps): only scoring is left")

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        """The task's loss, averaged over all examples of the optimizer step."""
        smoothing = self.recipe.training.label_smoothing
        task = self.recipe.task
        total = task.loss(task.logits(outputs), labels, smoothing)
        mean: torch.Tensor = total / num_items_in_batch
        if self.training_hook is None:
            return mean
        # the gradients of all micro-batches and ranks are added up
        passes = self.args.gradient_accumulation_steps * self.world.size
        return mean + self.training_hook.penalty() / passes

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """The order must be a function of (seed, epoch) alone: transformers 5.23 loses a
        length-grouped one when it resumes past the first epoch. accelerate passes `set_epoch` only
        to samplers attached this way."""
        loader = super().get_train_dataloader()
        loader.set_sampler(self.order)  # type: ignore[attr-defined]
        return loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW on fp32 masters; made here because under FSDP weights are sharded by now."""
        if self.optimizer is None:
            training = self.recipe.training
            module = model or self.assembled.module
            self.masters = MasterAdamW(
                trainable(module).items(),
                self.recipe.lr(),
                training.weight_decay,
                training.max_grad_norm,
                self.recipe.strategy.lr_multipliers(module),
            )
            self.optimizer = self.masters
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """All five schedules from one function of the step; with them the strategy's companion."""
        if self.lr_scheduler is None:
            training = self.recipe.training
            self.training_hook = self.recipe.strategy.training_hook(
                self.assembled.module, num_training_steps
            )
            self.masters.training_hook = self.training_hook
            rising = warmup_steps(training.warmup_ratio, num_training_steps)
            factors = rate_factors(
                self.masters, training.lr_scheduler_type, rising, num_training_steps
            )
            self.lr_scheduler = LambdaLR(optimizer or self.masters, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Gradients of each micro-batch are added up in fp32, not in the weights' own type."""
        self.recorder.count(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.masters.collect()
        if math.isfinite(self.last_loss):
            self.last_loss = float(loss)
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation split's headline score and loss, by the code that scores the tests."""
        started = time.monotonic()
        task = self.recipe.task
        found = predict(self.assembled, task, self.eval_dataset, self.world)
        scored = task.score(found, self.validation)
        metrics: Any = {"eval_score": scored.scores[task.chosen_by].value, "eval_loss": found.loss}
        self.recorder.validated(time.monotonic() - started)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics  # type: ignore[no-any-return]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What trains and nothing else, for every strategy alike (the Trainer would save whole
        models for all but PEFT's, and cannot restore a quantized one)."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.world.is_main:
            save_trained(self.assembled.module, Path(str(output_dir)) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_trained(self.assembled.module, Path(resume_from_checkpoint) / TRAINED)
