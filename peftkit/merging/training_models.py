"""The model that an adapter was trained on, from the base's configuration alone."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from peftkit.loading.model import quiet_transformers
from peftkit.merging.adapters import Adapter
from peftkit.models.architectures import linear_layers


def training_config(adapter: Adapter, base: Path) -> Any:
    """The configuration of the model that an artifact of peftkit was trained on."""
    task = adapter.task
    assert task is not None
    config = AutoConfig.from_pretrained(base, **task.configuration(adapter.manifest["labels"]))
    config.pad_token_id = AutoConfig.from_pretrained(adapter.folder).pad_token_id
    config.use_cache = False
    return config


def quantized_layers(adapter: Adapter, base: Path) -> dict[str, bool]:
    """The layers that transformers quantized in training, and whether their weights are (in, out):
    the linear layers of all blocks, but for those that an architecture keeps in fp32."""
    task = adapter.task
    assert task is not None, "only artifacts of peftkit record a quantization"
    config = training_config(adapter, base)
    with quiet_transformers(), torch.device("meta"):
        model = task.auto_class(config).from_config(config)
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    return {
        name: type(model.get_submodule(name)).__name__ == "Conv1D"
        for name in linear_layers(model)
        if not any(part in name.split(".") for part in kept)
    }
