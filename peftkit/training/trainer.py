"""Training: the steps of one recipe through `transformers.Trainer`, with exact resume."""

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
from peftkit.evaluation.prediction import initialization_batches, predict
from peftkit.loading.model import LoadedModel
from peftkit.preprocessing.batching import Order
from peftkit.records.record import Engine, Proof
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World, say, share_of_batch
from peftkit.strategies.base import TrainingHook, trainable
from peftkit.tasks.base import EvalSplit
from peftkit.training.batch_size import find_micro_batch_size
from peftkit.training.callbacks import RecordingCallback, ShouldPrune
from peftkit.training.checkpoints import (
    TRAINED,
    best_weights_path,
    latest_checkpoint,
    load_optimizer_state,
    load_trained,
    read_manifest,
    save_trained,
    step_of,
    unreadable_error,
)
from peftkit.training.integrity import IntegrityCheck
from peftkit.training.optimizer import MasterWeightAdamW, lr_lambdas, warmup_steps
from peftkit.training.packing import select_engine, with_engine
from peftkit.training.trainer_arguments import trainer_arguments


@dataclass(frozen=True)
class TrainingResult:
    """The result of training; the model itself is trained in place."""

    loaded: LoadedModel
    """The trained model, with the chosen batch layout."""
    engine: Engine
    steps: int
    micro_batch_size: int
    best: dict[str, float | None]
    proof: Proof
    seconds: float
    """In optimizer steps, over all processes of the run."""
    validation_seconds: float
    """In evaluations of the validation split, likewise."""
    earlier_seconds: float
    """Total time of earlier processes of the run."""
    tokens: int
    positions: int
    samples: int
    notes: tuple[str, ...] = ()


def fit(
    recipe: Recipe,
    loaded: LoadedModel,
    examples: Any,
    folder: RunDir,
    world: World,
    validation: EvalSplit,
    should_prune: ShouldPrune | None = None,
) -> TrainingResult:
    """Train `loaded` in place, from the latest complete checkpoint in `folder` if there is one.

    Evaluates on `validation`; `should_prune` may stop it early. Raises `RunStopped` after a signal,
    `RunError` if the loss is not finite or the data has too few rows.
    """
    training = recipe.training
    check_rows(recipe, examples)
    share = share_of_batch(training.batch_size, world.size)
    recipe.strategy.prepare(loaded.module, lambda: initialization_batches(recipe, loaded, examples))
    check = IntegrityCheck(loaded.module)
    micro = find_micro_batch_size(recipe, loaded, examples["train"], share, folder, world)
    engine = select_engine(recipe, loaded, examples["train"], micro, folder, world)
    if loaded.batcher.packed:
        loaded = with_engine(loaded, engine.used)
    trainer = PeftTrainer(
        recipe, loaded, examples, folder, world, micro, share // micro, validation
    )
    trainer.recorder.should_prune = should_prune
    trainer.train_or_resume()
    recorder, state = trainer.recorder, trainer.state
    best = recorder.best(state.log_history)
    warmup = warmup_steps(training.warmup_ratio, state.max_steps)
    proof = check.verify(trainer.adamw.master_weights, warmup, state)
    if training.keep == "best" and best and best["step"] < state.global_step:
        load_trained(loaded.module, best_weights_path(folder.checkpoints, int(best["step"])))
    return TrainingResult(
        loaded=loaded,
        engine=engine,
        steps=state.global_step,
        micro_batch_size=micro,
        best=best,
        proof=proof,
        seconds=recorder.seconds,
        validation_seconds=recorder.validation_seconds,
        earlier_seconds=recorder.earlier_seconds,
        samples=state.global_step * training.batch_size,
        notes=recorder.notes(state.log_history),
        **recorder.token_counts(),
    )


def check_rows(recipe: Recipe, examples: Any) -> None:
    """Raise `RunError` for a batch larger than the train split, or patience without a validation
    split."""
    rows, training = len(examples["train"]), recipe.training
    if rows < training.batch_size:
        raise RunError(
            f"training.batch_size={training.batch_size} is more than the {rows} training examples "
            f"- use training.batch_size={rows} or less"
        )
    if training.patience and not len(examples["validation"]):
        raise RunError(
            f"training.patience={training.patience} needs a validation split, and there is none "
            "- set data.validation or leave patience out"
        )


class PeftTrainer(Trainer):
    """A `Trainer` with peftkit's data order, optimizer, checkpoints and evaluation.

    All overrides are of public methods, except `_load_from_checkpoint`, which has no public
    equivalent.
    """

    def __init__(
        self,
        recipe: Recipe,
        loaded: LoadedModel,
        examples: Any,
        folder: RunDir,
        world: World,
        micro: int,
        accumulation: int,
        validation: EvalSplit,
    ) -> None:
        training, train = recipe.training, examples["train"]
        self.recipe, self.loaded, self.folder, self.world = recipe, loaded, folder, world
        self.order = Order(
            list(train["length"]),
            training.batch_size,
            training.seed,
            training.order == "length_grouped",
        )
        self.validation = validation
        self.adamw: MasterWeightAdamW
        self.training_hook: TrainingHook | None = None
        self.last_loss = 0.0
        """Of this rank's last micro-batch; not updated once it is not finite."""
        self.recorder = RecordingCallback(recipe, folder, world)
        super().__init__(
            model=loaded.module,
            args=trainer_arguments(recipe, folder, world, micro, accumulation),
            train_dataset=train,
            eval_dataset=examples["validation"],
            data_collator=loaded.batcher,
            compute_loss_func=self.loss,
            callbacks=[self.recorder],
        )
        self.remove_callback(PrinterCallback)
        self.recorder.trainer = self

    def train_or_resume(self) -> None:
        """Train, from the latest complete checkpoint if there is one; a finished training is only
        restored."""
        checkpoint = latest_checkpoint(
            self.folder.checkpoints, lambda message: say(self.world, message)
        )
        try:
            if checkpoint is not None and read_manifest(checkpoint)["done"]:
                self.restore_finished(checkpoint)
                return
            if checkpoint is not None:
                say(self.world, f"resuming at step {step_of(checkpoint)}")
            with self.recorder:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except UnpicklingError as error:  # only optimizer and random states are unpickled
            raise unreadable_error(checkpoint or self.folder.checkpoints, error) from error
        if number := self.recorder.signal_on_any_rank():
            raise RunStopped(
                f"stopped at step {self.state.global_step} of {self.state.max_steps}; a checkpoint "
                f"is in {self.folder.checkpoints} - run the same command to resume",
                number,
            )

    def restore_finished(self, checkpoint: Path) -> None:
        """Restore a run whose training had finished, and only its evaluation was interrupted."""
        load_trained(self.loaded.module, checkpoint / TRAINED)
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.create_optimizer_and_scheduler(self.state.max_steps)
        self.adamw.load_state_dict(load_optimizer_state(checkpoint / "optimizer.pt"))
        self.recorder.restore_counts(read_manifest(checkpoint))
        say(
            self.world,
            f"training has finished ({self.state.global_step} steps): only evaluation is left",
        )

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        """The task's loss, a scalar: the mean over all examples of the optimizer step."""
        smoothing = self.recipe.training.label_smoothing
        task = self.recipe.task
        total = task.loss(task.logits(outputs), labels, smoothing)
        mean: torch.Tensor = total / num_items_in_batch
        if self.training_hook is None:
            return mean
        # the gradients of all micro-batches and ranks are summed
        passes = self.args.gradient_accumulation_steps * self.world.size
        return mean + self.training_hook.penalty() / passes

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """The data loader, in an order that is a function of (seed, epoch) alone: transformers 5.23
        loses a length-grouped order when it resumes after the first epoch. accelerate calls
        `set_epoch` only on samplers set in this way."""
        loader = super().get_train_dataloader()
        loader.set_sampler(self.order)  # type: ignore[attr-defined]
        return loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with fp32 master weights; created here because under FSDP the weights are sharded
        by now."""
        if self.optimizer is None:
            training = self.recipe.training
            module = model or self.loaded.module
            self.adamw = MasterWeightAdamW(
                trainable(module).items(),
                self.recipe.lr(),
                training.weight_decay,
                training.max_grad_norm,
                self.recipe.strategy.lr_multipliers(module),
            )
            self.optimizer = self.adamw
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The recipe's learning-rate schedule, and the strategy's training hook."""
        if self.lr_scheduler is None:
            training = self.recipe.training
            self.training_hook = self.recipe.strategy.training_hook(
                self.loaded.module, num_training_steps
            )
            self.adamw.training_hook = self.training_hook
            warmup = warmup_steps(training.warmup_ratio, num_training_steps)
            factors = lr_lambdas(self.adamw, training.lr_scheduler_type, warmup, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.adamw, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """A training step whose micro-batch gradients are accumulated in fp32, not in the weights'
        dtype."""
        self.recorder.count(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.adamw.accumulate_gradients()
        if math.isfinite(self.last_loss):
            self.last_loss = float(loss)
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The headline score and the loss of the validation split, computed like those of the test
        split."""
        started = time.monotonic()
        task = self.recipe.task
        found = predict(self.loaded, task, self.eval_dataset, self.world)
        scored = task.score(found, self.validation)
        metrics: Any = {
            "eval_score": scored.scores[task.validation_metric].value,
            "eval_loss": found.loss,
        }
        self.recorder.add_validation_seconds(time.monotonic() - started)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics  # type: ignore[no-any-return]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trainable parameters only, for every strategy (the Trainer saves whole models
        unless they are PEFT's, and cannot restore a quantized one)."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.world.is_main:
            save_trained(self.loaded.module, Path(str(output_dir)) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_trained(self.loaded.module, Path(resume_from_checkpoint) / TRAINED)
