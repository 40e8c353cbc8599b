"""Heads: what becomes of one that the base has already, where a task puts its own on the model."""

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

SHOWN_LABELS = 5
NEW = "the head is new"
"""How the note on a head begins that takes the place of the base's own."""


@dataclass(frozen=True)
class PretrainedHead:
    """The output layer in a base's files, which says something of each label."""

    tensors: tuple[str, ...]
    """The names of its tensors; a label has a row in each."""
    order: tuple[int, ...] | None
    """The rows in the order of the run's labels; None: they are of others, and a new layer takes
    the place of this one."""
    note: str
    """What a reader of the scores must know of it."""

    def refuse_others(self, model: str, mismatched: Iterable[Any]) -> None:
        """Raise `RecipeError` where tensors that are not this layer's have another shape in the
        files than the configuration asks for."""
        others = sorted(key[0] for key in mismatched if key[0] not in self.tensors)
        if others:
            what = f"the files of {model!r} do not fit its config.json ({', '.join(others[:3])})"
            fault = Fault("model", f"{what} - fetch it again, or name a whole one")
            raise RecipeError("the model cannot be loaded:", [fault])

    def settle(self, model: PreTrainedModel, seed: int) -> None:
        """Put the rows of the loaded layer in the order of the run's labels, or draw the layer as
        transformers draws one that a base's files do not have."""
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
    """The head that the base in `folder` has where the model of this `config` has its own; None
    where there is none. `names` are the run's labels; none: the outputs mean the same always."""
    if not task.trains_head:
        return None
    shapes, auto_class = tensor_shapes(Path(folder)), task.auto_class(config)
    if not any(name in shapes for name in head_tensors(auto_class, config)):
        return None
    tensors = tuple(name for name in output_tensors(auto_class, config) if name in shapes)
    if not tensors:
        return None
    own = type_name(auto_class, config)
    was = AutoConfig.from_pretrained(folder)
    known = [str(was.id2label[index]) for index in sorted(was.id2label)]
    alike = own in (was.architectures or ()) and shapes[tensors[0]][0] == len(known)
    if not names:
        if alike and len(known) == config.num_labels:
            order = tuple(range(len(known)))
            return PretrainedHead(tensors, order, "the base's own head is trained on")
    elif alike and sorted(known) == sorted(names):
        order = tuple(map(known.index, names))
        how = "trained on" if known == [*names] else "put into the order of the run's labels"
        return PretrainedHead(tensors, order, f"the base's own head has these labels: it is {how}")
    return PretrainedHead(tensors, None, f"{NEW}: the base's {said_of(known, alike)}")


def has_new_head(record: RunRecord) -> bool:
    """Whether a run put a new head in the place of the base's own, whose size may be another."""
    return any(note.startswith(NEW) for note in record.notes)


def reinitialize(model: Any, tensors: Sequence[str]) -> None:
    """Initialize the tensors of these names as the model's own code does when they are missing.

    transformers 5.23 asks the flag; only what lacks it is drawn, whichever module's code draws it.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    for name in tensors:
        model.get_parameter(name)._is_hf_initialized = False
        steps = name.split(".")[:-1]
        for depth in range(len(steps) + 1):
            model.get_submodule(".".join(steps[:depth]))._is_hf_initialized = False
    model.initialize_weights()


def said_of(known: Sequence[str], alike: bool) -> str:
    """What a base's head is for, for a message."""
    if not alike:
        return "is another task's"
    if all(re.fullmatch(r"LABEL_\d+", name) for name in known):
        return f"does not name its {len(known)} labels"
    more = ", ..." if len(known) > SHOWN_LABELS else ""
    return f"has other labels ({', '.join(known[:SHOWN_LABELS])}{more})"


def type_name(auto_class: Any, config: PretrainedConfig) -> str:
    """The name of the class that opens a model of this `config`."""
    return str(auto_class._model_mapping[type(config)].__name__)


def head_tensors(auto_class: Any, config: PretrainedConfig) -> list[str]:
    """The names of the tensors above the base model."""
    with torch.device("meta"):
        model = auto_class.from_config(config)
    heads = tuple(f"{name}." for name in head_names(model))
    return [name for name, _ in model.named_parameters() if name.startswith(heads)]


def output_tensors(auto_class: Any, config: PretrainedConfig) -> list[str]:
    """The names of the tensors whose rows are the labels': whose shapes depend on how many."""
    sizes, count = [], len(config.id2label or ())
    for number in (count, count + 1):
        other = copy.deepcopy(config)
        other.num_labels = number
        with torch.device("meta"):
            model = auto_class.from_config(other)
        sizes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    return [name for name, shape in sizes[0].items() if sizes[1][name] != shape]
