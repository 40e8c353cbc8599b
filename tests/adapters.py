"""Adapters made by PEFT alone, on tiny models, for tests of merging."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftkit.sources import find_model
from peftkit.strategies import quiet_peft

CLASSIFIER, LANGUAGE = "SEQ_CLS", "CAUSAL_LM"
LOADERS = {CLASSIFIER: AutoModelForSequenceClassification, LANGUAGE: AutoModelForCausalLM}


def base(
    folder: Path, model: str, task: str = LANGUAGE, dtype: str = "float32", **save: Any
) -> Path:
    """A checkpoint of the tiny `model` in the class of `task`, its head made by chance."""
    made = plain(Path(find_model(model).location), task).to(getattr(torch, dtype))
    made.save_pretrained(folder, **save)
    tokenizer_of(model).save_pretrained(folder)
    return folder


def tokenizer_of(model: str) -> Any:
    from peftkit.model import load_tokenizer

    return load_tokenizer(find_model(model).location)


def plain(folder: Path, task: str = LANGUAGE, **given: Any) -> Any:
    """The checkpoint opened as transformers does it."""
    torch.manual_seed(0)
    return LOADERS[task].from_pretrained(folder, **given).eval()


def adapter(folder: Path, base: Path, config: Any, seed: int = 1) -> Path:
    """A PEFT folder whose tensors are all made by chance, small enough to be an adapter's."""
    from peft import get_peft_model

    task = str(config.task_type)
    with quiet_peft():
        model = get_peft_model(plain(base, task, **as_stored(base)), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def as_stored(base: Path) -> dict[str, Any]:
    return {"dtype": "auto"}


def merged_by_peft(base: Path, adapter: Path, task: str = LANGUAGE) -> nn.Module:
    """PEFT's own merge, in the base's type."""
    from peft import PeftModel

    with quiet_peft():
        model = PeftModel.from_pretrained(
            plain(base, task, **as_stored(base)), str(adapter), autocast_adapter_dtype=False
        )
    return model.merge_and_unload()  # type: ignore[no-any-return,operator]


def on_base(base: Path, adapter: Path, task: str = LANGUAGE) -> nn.Module:
    """Base + adapter, unmerged, in fp32."""
    from peft import PeftModel

    with quiet_peft():
        return PeftModel.from_pretrained(
            plain(base, task, dtype=torch.float32), str(adapter), autocast_adapter_dtype=False
        ).eval()
