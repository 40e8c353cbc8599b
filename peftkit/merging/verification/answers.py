"""Answering: what a run says of held-out rows, and what its merged folder says by itself.

Transformers alone opens the folder, and reads the same texts by the tokenizer, chat template and
the configurations in it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import nn
from transformers import AutoTokenizer, TokenizersBackend, pipeline

from peftkit.config.recipe import Recipe
from peftkit.evaluation.prediction import merge_batches, predict_batches
from peftkit.loading.model import LoadedModel, make_batcher
from peftkit.merging.inference_settings import read_settings
from peftkit.models.architectures import unwrap_model
from peftkit.records.record import ParameterCount
from peftkit.tasks.base import EvalSplit, Predictions
from peftkit.text.special_token_text import get_escaper

UNCOUNTED = ParameterCount(trainable=0, total=0, base=0, head=0, adapter=0)
Columns = Mapping[str, Sequence[Any]]


class AnswerCheck(Protocol):
    """Rows that both are asked about."""

    def query(self, module: nn.Module) -> None:
        """Have the run's model answer, fed as `peftkit predict` feeds it."""

    def compare_with(self, model: Any, folder: Path, tolerance: float) -> dict[str, Any]:
        """Compare the merged `model` with it: fields of a `MergeProof`. `tolerance` is how far
        a logit may move."""


class RunSide(NamedTuple):
    """A run's side: its recipe, its tokenizer, the rows and the labels' names."""

    recipe: Recipe
    tokenizer: Any
    columns: Columns
    names: Sequence[str]

    def fed(self, module: nn.Module) -> LoadedModel:
        """The run's `module` with what a run feeds it by, its hooks attached."""
        base, task = unwrap_model(module), self.recipe.task
        batcher = make_batcher(
            task, module, base, self.tokenizer, packed=False, num_virtual_tokens=0
        )
        return LoadedModel(module, self.tokenizer, batcher, UNCOUNTED, ())

    def of_rows(self, rows: Sequence[int]) -> "RunSide":
        """The same of some of the rows."""
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        return self._replace(columns=columns)

    def holds_special(self, row: int) -> bool:
        """Whether a row's texts hold special tokens, which transformers may read as such."""
        known = get_escaper(self.tokenizer)
        return any(any(known.find_tokens(column[row])) for column in self.columns.values())

    def tokenized_differently(
        self, tokenizer: Any, ours: Sequence[Any], theirs: Sequence[Any]
    ) -> list[bool]:
        """For each row whether it becomes other tokens only because it holds special ones, which
        this `tokenizer` of transformers has been told to read as text, or cannot be told."""
        if not (tokenizer.split_special_tokens or self.recipe.task.reading == "labels"):
            return [False] * len(ours)
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [list(a) != list(b) and self.holds_special(row) for row, (a, b) in pairs]


def open_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers opens it; by the class that its settings name, where
    AutoTokenizer 5.23 takes the usual one of the architecture (qwen2)."""
    named = read_settings(folder / "tokenizer_config.json").get("tokenizer_class")
    loader: Any = TokenizersBackend if named == "TokenizersBackend" else AutoTokenizer
    return loader.from_pretrained(folder)


class LabelAnswers:
    """Rows whose answers are labels or numbers, which a pipeline of transformers gives too."""

    def __init__(self, run: RunSide) -> None:
        self.run = run
        self.ids: list[list[int]] = []
        self.answers = np.zeros((0, 0))
        """What the task keeps of each row, as probabilities: (rows, labels)."""

    def query(self, module: nn.Module) -> None:
        """Have the run's model say each label's probability, or the numbers."""
        recipe, tokenizer, columns, names = self.run
        found = recipe.task.encode(columns, tokenizer, names, recipe.data.max_length)
        rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        self.ids = found["input_ids"]
        answered = predict_batches(self.run.fed(module), recipe.task, rows, [range(len(rows))])
        self.answers = np.asarray(merge_batches(answered, found["labels"]).outputs)

    def compare_with(self, model: Any, folder: Path, tolerance: float) -> dict[str, Any]:
        """What a pipeline says of the same texts."""
        tokenizer, columns = open_tokenizer(folder), self.run.columns
        cut = {"truncation": True, "max_length": self.run.recipe.data.max_length}
        pair = "text_pair" in columns
        texts = [{"text": t} for t in columns["text"]]
        if pair:
            texts = [
                {**t, "text_pair": p} for t, p in zip(texts, columns["text_pair"], strict=True)
            ]
        ask = pipeline("text-classification", model=model, tokenizer=tokenizer, device=model.device)
        scored = [{s["label"]: s["score"] for s in ask(t, top_k=None, **cut)} for t in texts]
        theirs = np.asarray([[row.get(name, np.nan) for name in self.run.names] for row in scored])
        ids = [tokenizer(**t, **cut)["input_ids"] for t in texts]
        skipped = self.run.tokenized_differently(tokenizer, self.ids, ids)
        return {"answers": self.compare_rows(theirs, skipped, tolerance)}

    def compare_rows(
        self, theirs: np.ndarray, skipped: Sequence[bool], tolerance: float
    ) -> dict[str, Any]:
        """The two sides row by row."""
        apart = np.abs(self.answers - theirs).max(axis=1)
        chosen = [self.chosen(self.answers), self.chosen(theirs)]
        equal, ties, different = 0, 0, []
        for row, skip in enumerate(skipped):
            if skip:
                continue
            if not apart[row] <= tolerance:  # NaN is not
                different.append(row + 1)
            elif chosen[0][row] == chosen[1][row]:
                equal += 1
            else:
                ties += 1
        return {
            "compared": len(skipped) - sum(skipped),
            "equal": equal,
            "near_ties": ties,
            "tokenized_differently": sum(skipped),
            "different": different,
        }

    def chosen(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """The labels that the task takes each row's outputs for."""
        recipe, _, columns, names = self.run
        given = EvalSplit(columns, {}, names, resamples=0, fitted_state=recipe.task.fitted_state)
        answers = recipe.task.answers(Predictions([], list(outputs), None), given)
        return [{k: v for k, v in each.items() if k in ("label", "labels")} for each in answers]
