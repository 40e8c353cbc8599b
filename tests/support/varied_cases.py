"""The matrix of models that differ: which one is trained how, for what, and handed on as what."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from peftkit.config.recipe import Recipe
from support.pairwise import Axes, Rule, each_value
from support.varied_models import (
    DECODERS,
    RULES,
    TEMPLATES,
    WITH_ENCODER,
    Architecture,
    Chat,
    Head,
    Kind,
    Pad,
    VariedModel,
)
from support.varied_rows import SCRIPTS, Script, classified, pairs, talks, written

Task = Literal["text_classification", "instruction_tuning", "translation", "text_generation"]
Way = Literal["lora", "lora-4bit", "ia3", "oft", "layernorm", "embeddings", "full", "adapter"]
Handed = Literal["merged", "exported"]
WAYS: dict[str, tuple[str, str]] = {
    "lora": ("{kind: lora, r: 4}", "none"),
    "lora-4bit": ("{kind: lora, r: 4}", "4bit"),
    "ia3": ("ia3", "none"),
    "oft": ("oft", "none"),
    "layernorm": ("layernorm", "none"),
    "embeddings": ("[{kind: lora, r: 4}, {kind: frozen, last: 0, embeddings: true}]", "none"),
    "full": ("full", "none"),
    "adapter": ("{kind: adapter, activation: gelu}", "none"),
}
"""Strategy, and how the base is held."""
MAKES = {
    "text_classification": classified,
    "instruction_tuning": talks,
    "translation": pairs,
    "text_generation": classified,
}
GENERATE = {"rows": 3, "max_new_tokens": 12, "untrained_baseline": False}


@dataclass(frozen=True)
class Case:
    """One model, one way to train it on one script's rows, one way to hand it on."""

    model: VariedModel
    task: Task
    script: Script
    way: Way
    handed: Handed

    def __str__(self) -> str:
        return f"{self.model} {self.task} {self.script} {self.way} {self.handed}"

    def recipe(self, model: Path, rows: Path) -> Recipe:
        """The run on the model's folder; `rows` is where the data is written."""
        strategy, quantize = WAYS[self.way]
        data = {"kind": "files", "path": str(self.data(rows)), "max_length": 96}
        return Recipe.load(
            "lora_tiny",
            f"model={model}",
            f"data={json.dumps(data)}",
            f"task={json.dumps(self.setting())}",
            f"strategy={strategy}",
            f"quantize={quantize}",
            "training={steps: 4, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.02}",
        )

    def setting(self) -> dict[str, Any]:
        """The recipe's task."""
        if self.task == "text_classification":
            return {"kind": "text_classification"}
        if self.task == "text_generation":
            return {"kind": "text_generation", "prompt_words": 3, "generate": GENERATE}
        given = {"none": "plain", "given": TEMPLATES["turns"]}.get(self.model.chat)
        if self.task == "instruction_tuning":
            return {"kind": "instruction_tuning", "template": given, "generate": GENERATE}
        asked = {"template": given} if self.model.architecture in DECODERS else {}
        return {"kind": "translation", "target_length": 32, "generate": GENERATE, **asked}

    def data(self, folder: Path) -> Path:
        """The rows' files below the folder."""
        to = folder / f"{self.task}-{self.script}"
        sizes = {"train": 24, "validation": 6, "test": 9}
        return to if to.is_dir() else written(to, MAKES[self.task], [self.script], sizes)


def suits(architecture: str, task: Task) -> bool:
    """Whether an architecture does the task."""
    if task == "text_classification":
        return architecture != "marian"
    return architecture in DECODERS or (task == "translation" and architecture in WITH_ENCODER)


CASE_RULES: dict[str, Rule] = {
    "an architecture does what it was made for": suits,
    "a head is for classes": lambda head, task: head == "none" or task == "text_classification",
    "bottlenecks cannot be merged": lambda way, handed: (way, handed) != ("adapter", "merged"),
    "PEFT's OFT does not support Conv1D": lambda architecture, way: (
        (architecture, way) != ("gpt2", "oft")
    ),
}
AXES: dict[str, tuple[Any, ...]] = {
    "architecture": get_args(Architecture),
    "task": get_args(Task),
    "tokenizer": get_args(Kind),
    "files": ("fast", "slow"),
    "head": get_args(Head),
    "tied": (True, False),
    "chat": get_args(Chat),
    "pad": get_args(Pad),
    "bos": (True, False),
    "way": get_args(Way),
    "handed": get_args(Handed),
    "script": SCRIPTS,
}
"""Those first that leave the least to choose."""
OF_MODEL = [field.name for field in fields(VariedModel)]


@cache
def cases() -> list[Case]:
    """The whole matrix: each two values that go together, at least once."""
    return [case_of(found) for found in Axes(AXES, {**RULES, **CASE_RULES}).covering()]


def case_of(found: Mapping[str, Any]) -> Case:
    """The case with these values."""
    return Case(
        model=VariedModel(**{axis: found[axis] for axis in OF_MODEL}),
        **{axis: found[axis] for axis in ("task", "script", "way", "handed")},
    )


def values_of(case: Case) -> dict[str, Any]:
    """The case's value on each axis."""
    return {axis: getattr(case.model if axis in OF_MODEL else case, axis) for axis in AXES}


def chosen() -> list[Case]:
    """The cases of this test run: each value once, or each pair (PEFTKIT_MATRIX=whole)."""
    whole = os.environ.get("PEFTKIT_MATRIX") == "whole"
    return cases() if whole else [*each_value(cases(), values_of), *FAILED_ONCE]


FAILED_ONCE = (
    Case(VariedModel("bart", "bytes", tied=False), "translation", "Devanagari", "full", "merged"),
    Case(VariedModel("marian", "bytes"), "translation", "Arabic", "embeddings", "merged"),
)
"""What the whole matrix found, and no case with each value once would."""
