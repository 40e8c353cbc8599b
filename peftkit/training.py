"""Training: one recipe's steps through `transformers.Trainer`, exact, restartable and watched."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

from peftkit.batching import Order
from peftkit.checkpoints import facts_of, latest, load_trained, save_trained, step_of
from peftkit.errors import RecipeError, RunError, RunStopped
from peftkit.evaluation import predict
from peftkit.model import Assembled
from peftkit.optimizer import MasterAdamW
from peftkit.probe import fitting_micro_batch
from peftkit.proof import Witness
from peftkit.recipe import Recipe
from peftkit.record import Proof, RunFolder
from peftkit.recording import Recorder
from peftkit.strategies import trainable
from peftkit.world import World, say, share_of_batch


@dataclass(frozen=True)
class Outcome:
    """What training left behind; the model itself is trained in place."""

    steps: int
    micro_batch_size: int
    best: dict[str, float]
    proof: Proof
    seconds: float
    tokens: int
    positions: int
    samples: int
    exact: bool


def fit(
    recipe: Recipe, assembled: Assembled, examples: Any, folder: RunFolder, world: World
) -> Outcome:
    """Train `assembled` by the recipe, from the last whole checkpoint in `folder` if there is one.

    Raises `RunStopped` after a signal, `RunError` when the loss is not a number.
    """
    train = examples["train"]
    share = share_of_batch(recipe.training.batch_size, world.size)
    witness = Witness(assembled.module)
    order = Order(
        train["length"],
        recipe.training.batch_size,
        recipe.training.seed,
        recipe.training.order == "length_grouped",
    )
    micro = fitting_micro_batch(recipe, assembled, train, share, folder, world)
    checkpoint = latest(folder.checkpoints, lambda message: say(world, message))
    loop = Loop(recipe, assembled, examples, order, folder, world, micro, share // micro)
    if checkpoint is not None and facts_of(checkpoint)["done"]:
        loop.restore_finished(checkpoint)
    else:
        if checkpoint is not None:
            say(world, f"resuming at step {step_of(checkpoint)}")
        with loop.recorder:
            loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if loop.recorder.stopped_by is not None:
        raise RunStopped(
            f"stopped at step {loop.state.global_step} of {loop.state.max_steps}; a checkpoint is in "
            f"{folder.checkpoints} - the same command goes on from it",
            loop.recorder.stopped_by,
        )
    best = loop.recorder.best(loop.state.log_history)
    proof = witness.testify(loop.masters.masters, warmup_steps(recipe, loop.state.max_steps), loop.state)
    if recipe.training.keep == "best" and best and best["step"] < loop.state.global_step:
        load_trained(assembled.module, folder.checkpoints / "best.safetensors")
    return Outcome(
        steps=loop.state.global_step,
        micro_batch_size=micro,
        best=best,
        proof=proof,
        seconds=loop.recorder.seconds,
        tokens=loop.recorder.tokens,
        positions=loop.recorder.positions,
        samples=loop.state.global_step * recipe.training.batch_size,
        exact=folder.description().get("exact", True),
    )


class Loop(Trainer):
    """A `Trainer` whose data order, optimizer, checkpoints and evaluation are peftkit's.

    Each override is of a public method but for `_load_from_checkpoint`, which has no public twin.
    """

    def __init__(
        self,
        recipe: Recipe,
        assembled: Assembled,
        examples: Any,
        order: Order,
        folder: RunFolder,
        world: World,
        micro: int,
        accumulation: int,
    ) -> None:
        self.recipe, self.assembled, self.order, self.world = recipe, assembled, order, world
        self.masters: MasterAdamW
        self.recorder = Recorder(recipe, folder, world)
        super().__init__(
            model=assembled.module,
            args=arguments(recipe, folder, world, micro, accumulation),
            train_dataset=examples["train"],
            eval_dataset=examples["validation"],
            data_collator=assembled.batcher,
            compute_loss_func=self.loss,
            callbacks=[self.recorder],
        )
        self.remove_callback(PrinterCallback)
        self.recorder.loop = self

    def restore_finished(self, checkpoint: Path) -> None:
        """Take up a run whose training was done, and only the scoring was cut short."""
        load_trained(self.assembled.module, checkpoint / "trained.safetensors")
        self.create_optimizer()
        self.masters.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.recorder.go_on_from(facts_of(checkpoint))

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        """The task's loss, averaged over all examples of the optimizer step."""
        smoothing = self.recipe.training.label_smoothing
        total = self.recipe.task.loss(outputs.logits, labels, smoothing)
        return total / num_items_in_batch

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
            named = trainable(model or self.model).items()
            self.masters = MasterAdamW(named, self.recipe.lr(), training.weight_decay, training.clip)
            self.optimizer = self.masters
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """All five schedules from one function of the step."""
        if self.lr_scheduler is None:
            factor = rate_factor(self.recipe, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Gradients of each micro-batch are added up in fp32, not in the weights' own type."""
        self.recorder.count(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(float(loss)):
            raise RunError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1} - use a lower "
                f"training.lr (now {self.recipe.lr()}) or training.precision=fp32"
            )
        self.masters.collect()
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation split's headline score and loss, by the code that scores the test split."""
        started = time.monotonic()
        task = self.recipe.task
        found = predict(self.assembled, task, self.eval_dataset, self.world)
        names = self.assembled_names
        scored = task.score(found, names, majority=0, resamples=0)
        metrics = {"eval_score": scored.scores[task.headline].value, "eval_loss": found.loss}
        self.recorder.paused(time.monotonic() - started)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def assembled_names(self) -> list[str]:
        """The labels' names in id order, as the model's configuration has them."""
        labels = self.assembled.module.config.id2label
        return [labels[index] for index in sorted(labels)]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What trains and nothing else, for every strategy alike (the Trainer would save whole
        models for all but PEFT's, and cannot restore a quantised one)."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.world.is_main:
            save_trained(self.assembled.module, Path(str(output_dir)) / "trained.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_trained(self.assembled.module, Path(resume_from_checkpoint) / "trained.safetensors")


def arguments(
    recipe: Recipe, folder: RunFolder, world: World, micro: int, accumulation: int
) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    training = recipe.training
    ours: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        # gradients are collected in fp32 after each micro-batch, so each must be whole
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        "num_train_epochs": training.epochs,
        "max_steps": training.steps or -1,
        "max_grad_norm": 0.0,  # MasterAdamW clips
        "seed": training.seed,
        "eval_strategy": "no",  # the recorder asks for evaluations and checkpoints
        "save_strategy": "no",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
    }
    try:
        return TrainingArguments(**{**ours, **training.trainer})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training.trainer: TrainingArguments refuses this ({error})") from None


def rate_factor(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """The learning rate at a step as a share of its highest."""
    rising, schedule = warmup_steps(recipe, steps), recipe.training.schedule

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1, steps - rising)
        return {
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
            "constant": 1.0,
            "exponential": 0.01**done,
            "step": 0.5 ** math.floor(6 * done),
        }[schedule]

    return factor


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Steps in which the learning rate rises."""
    return math.floor(recipe.training.warmup * steps)
