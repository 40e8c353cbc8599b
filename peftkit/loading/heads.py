"""Heads: whether the base already has one, and if it is reused, reordered or replaced."""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from peftkit.errors import Fault, RecipeError
from peftkit.hub.fingerprint import tensor_shapes
from peftkit.models.architectures import head_names
from peftkit.records.record import RunRecord
from peftkit.tasks.base import Task

MAX_SHOWN_LABELS = 5
NEW = "the head is new"
"""Start of the note on a head that replaces the base's own."""


@dataclass(frozen=True)
class PretrainedHead:
    """The output layer in the base's files."""

    tensors: tuple[str, ...]
    """The names of its tensors; each has a row per label."""
    order: tuple[int, ...] | None
    """Its rows in the order of the run's labels; None: its labels differ, and a new layer replaces
    it."""
    note: str
    """For the record."""

    def check_mismatches(self, model: str, mismatched: Iterable[Any]) -> None:
        """Raise `RecipeError` if tensors other than this layer's have a shape in the files that
        differs from the configuration."""
        others = sorted(key[0] for key in mismatched if key[0] not in self.tensors)
        if others:
            what = f"the files of {model!r} do not fit its config.json ({', '.join(others[:3])})"
            fault = Fault("model", f"{what} - download it again, or use another model")
            raise RecipeError("the model cannot be loaded:", [fault])

    def apply(self, model: PreTrainedModel, seed: int) -> None:
        """Reorder the rows of the loaded layer to the run's labels, or initialize it as
        transformers initializes missing weights."""
        if self.order is None:
            torch.manual_seed(seed)
            reinitialize(model, self.tensors)
            return
        for name in self.tensors:
            parameter = model.get_parameter(name)
            parameter.data = parameter.data[list(self.order)].contiguous()


def find_pretrained_head(
    task: Task, config: PretrainedConfig, folder: str, names: Sequence[str]
) -> PretrainedHead | None:
    """The head of the base in `folder`, if the class for this task and `config` has its own; else
    None.

    `names` are the run's labels; empty if the outputs have a fixed meaning.
    """
    if not task.trains_head:
        return None
    shapes, auto_class = tensor_shapes(Path(folder)), task.auto_class(config)
    if not any(name in shapes for name in head_parameter_names(auto_class, config)):
        return None
    tensors = tuple(name for name in output_parameter_names(auto_class, config) if name in shapes)
    if not tensors:
        return None
    own = model_class_name(auto_class, config)
    pretrained = AutoConfig.from_pretrained(folder)
    known = [str(pretrained.id2label[index]) for index in sorted(pretrained.id2label)]
    alike = own in (pretrained.architectures or ()) and shapes[tensors[0]][0] == len(known)
    if not names:
        if alike and len(known) == config.num_labels:
            order = tuple(range(len(known)))
            return PretrainedHead(tensors, order, "the base's head is trained further")
    elif alike and sorted(known) == sorted(names):
        order = tuple(map(known.index, names))
        action = "trained further" if known == [*names] else "reordered to the run's labels"
        return PretrainedHead(tensors, order, f"the base's head has these labels and is {action}")
    return PretrainedHead(tensors, None, f"{NEW}: the base's {describe_labels(known, alike)}")


def has_new_head(record: RunRecord) -> bool:
    """Whether a run replaced the base's head, whose size may differ."""
    return any(note.startswith(NEW) for note in record.notes)


def reinitialize(model: Any, tensors: Sequence[str]) -> None:
    """Initialize the named tensors as transformers does if they are missing.

    transformers 5.23 checks a flag: only tensors without it are initialized, by whichever module.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    for name in tensors:
        model.get_parameter(name)._is_hf_initialized = False
        steps = name.split(".")[:-1]
        for depth in range(len(steps) + 1):
            model.get_submodule(".".join(steps[:depth]))._is_hf_initialized = False
    model.initialize_weights()


def describe_labels(known: Sequence[str], alike: bool) -> str:
    """The labels of a base's head, for a message."""
    if not alike:
        return "is for another task"
    if all(re.fullmatch(r"LABEL_\d+", name) for name in known):
        return f"does not name its {len(known)} labels"
    more = ", ..." if len(known) > MAX_SHOWN_LABELS else ""
    return f"has other labels ({', '.join(known[:MAX_SHOWN_LABELS])}{more})"


def model_class_name(auto_class: Any, config: PretrainedConfig) -> str:
    """The name of the model class for this `config`."""
    return str(auto_class._model_mapping[type(config)].__name__)


def head_parameter_names(auto_class: Any, config: PretrainedConfig) -> list[str]:
    """The names of the parameters above the base model."""
    with torch.device("meta"):
        model = auto_class.from_config(config)
    heads = tuple(f"{name}." for name in head_names(model))
    return [name for name, _ in model.named_parameters() if name.startswith(heads)]


def output_parameter_names(auto_class: Any, config: PretrainedConfig) -> list[str]:
    """The names of the parameters with a row per label: those whose shape depends on
    `num_labels`."""
    sizes, count = [], len(config.id2label or ())
    for number in (count, count + 1):
        other = copy.deepcopy(config)
        other.num_labels = number
        with torch.device("meta"):
            model = auto_class.from_config(other)
        sizes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    return [name for name, shape in sizes[0].items() if sizes[1][name] != shape]
