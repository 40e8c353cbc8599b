"""The model that an adapter was trained as, from the base model's configuration alone."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from peftkit.loading.model import quiet_transformers
from peftkit.merging.adapters import Adapter
from peftkit.models.architectures import linear_layers


def configuration(adapter: Adapter, base: Path) -> Any:
    """The configuration of the model that an artifact of ours was trained as."""
    task = adapter.task
    assert task is not None
    config = AutoConfig.from_pretrained(base, **task.configuration(adapter.sealed["labels"]))
    trained = AutoConfig.from_pretrained(adapter.folder)
    config.pad_token_id = trained.pad_token_id
    config.use_cache = False
    return config


def quantized_layers(adapter: Adapter, base: Path) -> dict[str, bool]:
    """The layers that transformers quantized in training, and whether their weights are (in, out).

    Those of the blocks, but for what an architecture keeps in fp32.
    """
    task = adapter.task
    assert task is not None, "only artifacts of ours know that they were quantized"
    config = configuration(adapter, base)
    with quiet_transformers(), torch.device("meta"):
        model = task.auto_class(config).from_config(config)
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    return {
        name: type(model.get_submodule(name)).__name__ == "Conv1D"
        for name in linear_layers(model)
        if not any(part in name.split(".") for part in kept)
    }
