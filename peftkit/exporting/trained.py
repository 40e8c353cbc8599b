"""The trained tensors of a run's model, and how `load.py` attaches them."""

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from peftkit.config.recipe import Recipe
from peftkit.evaluation.generation import max_prompt_length
from peftkit.exporting.load import TRAINED
from peftkit.hub.source import sha256_of
from peftkit.loading.model import LoadedModel
from peftkit.models.architectures import head_names, unwrap_model
from peftkit.models.layouts import ARCHITECTURES
from peftkit.models.parameters import base_parameters
from peftkit.storage.atomic_files import write_json
from peftkit.strategies.base import module_tensors, unwrap_heads
from peftkit.tasks.language_modeling.generation_settings import Generation


class Trained:
    """The trained tensors of a run's model; the model itself is not kept."""

    @torch.no_grad()  # an LSTM rounds differently with gradients
    def __init__(self, recipe: Recipe, loaded: LoadedModel) -> None:
        module: Any = loaded.module
        base = unwrap_model(module)
        self.modules = recipe.strategy.exported_modules(module)
        if base is not module:
            unwrap_heads(module)
        self.heads = head_names(base) if recipe.task.trains_head else []
        found = module_tensors(base, *self.heads)
        for each in self.modules:
            found.update(each.tensors)
        self.tensors = {name: tensor.detach().clone() for name, tensor in found.items()}
        heads = tuple(f"{name}." for name in self.heads)
        self.own = {
            name
            for name in base_parameters(base)
            if not name.startswith(heads) and name not in self.tensors
        }
        """The names of the base's own parameters, without the heads'."""
        self.reading = reading(recipe, base, loaded.tokenizer)
        if "added" in self.reading:
            self.tensors |= added_rows(base, self.reading["added"]["ids"])
        self.dtype = str(base.dtype).removeprefix("torch.")
        self.auto_class = recipe.task.auto_class(base.config).__name__
        self.prompts = prompt_format(recipe, loaded)

    def code(self) -> dict[str, str]:
        """The source that attaches each kind of module."""
        return {each.kind: textwrap.dedent(inspect.getsource(each.code)) for each in self.modules}

    def write(self, folder: Path, recipe: Recipe, base: Mapping[str, Any]) -> None:
        """Write the tensors and `loading.json`; `base` is where the base's weights are."""
        contiguous = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(contiguous, folder / TRAINED, metadata={"format": "pt"})
        settings = {
            "auto_class": self.auto_class,
            "dtype": self.dtype,
            "base": dict(base),
            "trained": sha256_of(folder / TRAINED),
            "heads": self.heads,
            "modules": [
                {"code": f"attach_{each.kind}", "settings": dict(each.settings)}
                for each in self.modules
            ],
            **self.reading,
            "max_length": recipe.data.max_length,
            "pairs": recipe.data.text_pair is not None,
            **({"prompts": self.prompts} if self.prompts is not None else {}),
        }
        write_json(folder / "loading.json", settings)


def added_rows(base: PreTrainedModel, ids: Sequence[int]) -> dict[str, Tensor]:
    """The embeddings of the tokens `ids`, and their output weights if these are not tied."""
    tables: dict[str, Any] = {"added": base.get_input_embeddings().weight}
    output: Any = base.get_output_embeddings()
    if output is not None and output.weight is not tables["added"]:
        tables["added_output"] = output.weight
    return {name: table[list(ids)].detach().clone() for name, table in tables.items()}


def reading(recipe: Recipe, base: Any, tokenizer: Any) -> dict[str, Any]:
    """Which token the head reads, after how many virtual tokens and from which module, and the
    tokens that the task added."""
    task, known = recipe.task, ARCHITECTURES.get(base.config.model_type)
    prefix = base.base_model_prefix if hasattr(base, base.base_model_prefix) else ""
    settings: dict[str, Any] = {
        "reads": known.reads if known is not None and task.trains_head else None,
        "ahead": recipe.strategy.num_prompt_tokens if task.trains_head else 0,
        "encoder": ".".join(filter(None, (prefix, known.encoder if known is not None else ""))),
    }
    if markers := list(task.markers()):
        ids = tokenizer.convert_tokens_to_ids(markers)
        rows = base.get_input_embeddings().weight.shape[0]
        settings["added"] = {"tokens": markers, "ids": ids, "rows": rows}
    if task.pools_markers:
        opening = [i for m, i in zip(markers, ids, strict=True) if not m.startswith("</")]
        settings["marked"] = {"opening": opening, "ahead": settings["ahead"]}
        settings["ahead"] = 0 if settings["reads"] == "first" else settings["ahead"]
    return settings


def prompt_format(recipe: Recipe, loaded: LoadedModel) -> dict[str, Any] | None:
    """How a language model's prompts are made and what ends its answers; None for other models."""
    task = recipe.task.text_generator
    if task is None:
        return None
    how = task.generate or Generation()
    longest = max_prompt_length(recipe, loaded, how)
    return {**task.prompt_format(loaded.tokenizer), "max_length": longest, "stop": how.stop}
