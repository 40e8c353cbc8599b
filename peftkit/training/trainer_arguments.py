"""The recipe as `transformers.TrainingArguments`."""

from typing import Any

import torch
from transformers import TrainingArguments

from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World


def trainer_arguments(
    recipe: Recipe, folder: RunDir, world: World, micro: int, accumulation: int
) -> TrainingArguments:
    """The recipe as `TrainingArguments`.

    Raises `RecipeError` if `training.trainer` has an unknown argument, or one that peftkit sets.
    """
    training = recipe.training
    ours: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        # gradients are accumulated in fp32 after each micro-batch, so each must be reduced
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        "num_train_epochs": training.epochs,
        "max_steps": training.steps or -1,
        "max_grad_norm": 0.0,  # MasterWeightAdamW clips
        "seed": training.seed,
        "eval_strategy": "no",  # RecordingCallback controls evaluations and checkpoints
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
    taken = sorted(ours.keys() & training.trainer.keys())
    if taken:
        raise RecipeError(f"training.trainer: {', '.join(taken)} is set by peftkit - remove it")
    try:
        return TrainingArguments(**ours, **training.trainer)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training.trainer: TrainingArguments rejects it ({error})") from None
