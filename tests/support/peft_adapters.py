"""Adapters made by PEFT alone, on tiny models, for tests of merging."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer, quiet_transformers
from peftkit.strategies.base import quiet_peft

CLASSIFIER, LANGUAGE = "SEQ_CLS", "CAUSAL_LM"
LOADERS = {CLASSIFIER: AutoModelForSequenceClassification, LANGUAGE: AutoModelForCausalLM}


def base(
    folder: Path,
    model: str,
    task: str = LANGUAGE,
    dtype: str = "float32",
    tie_word_embeddings: bool | None = None,
    **save: Any,
) -> Path:
    """A checkpoint of the tiny `model` in the class of `task`, its head made by chance."""
    ties = {} if tie_word_embeddings is None else {"tie_word_embeddings": tie_word_embeddings}
    location = find_model(model).location
    made = plain(Path(location), task, **ties).to(getattr(torch, dtype))
    made.save_pretrained(folder, **save)
    load_tokenizer(location).save_pretrained(folder)
    return folder


def plain(folder: Path, task: str = LANGUAGE, **given: Any) -> Any:
    """The checkpoint opened as transformers does it."""
    torch.manual_seed(0)
    with quiet_transformers():
        return LOADERS[task].from_pretrained(folder, **given).eval()


def adapter(
    folder: Path,
    base: Path,
    config: Any,
    tokens: int | None = None,
    size: float = 0.1,
    seed: int = 1,
    **given: Any,
) -> Path:
    """A PEFT folder whose tensors are all moved by chance, as far as training might."""
    from peft import get_peft_model

    whole = resized(plain(base, str(config.task_type), dtype="auto", **given), tokens)
    with quiet_peft():
        model = get_peft_model(whole, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    return folder


def on_base(
    base: Path,
    adapter: Path,
    task: str = LANGUAGE,
    tokens: int | None = None,
    dtype: Any = torch.float32,
    **given: Any,
) -> Any:
    """Base + adapter, unmerged."""
    from peft import PeftModel

    whole = resized(plain(base, task, dtype=dtype, **given), tokens)
    with quiet_peft():
        return PeftModel.from_pretrained(whole, str(adapter), autocast_adapter_dtype=False).eval()


def merged_by_peft(base: Path, adapter: Path, dtype: Any = "auto") -> nn.Module:
    """PEFT's own merge, in the base's type or another."""
    model = on_base(base, adapter, dtype=dtype)
    if dtype == torch.float32:
        model.float()  # what the adapter saved in another type
    return model.merge_and_unload()  # type: ignore[no-any-return]


def resized(model: Any, tokens: int | None) -> Any:
    """The model with embeddings for so many tokens."""
    if tokens is not None:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    return model
