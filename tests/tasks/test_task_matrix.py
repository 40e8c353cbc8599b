"""The behavior matrix's other axis: every task with every way to train, on tiny models."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError, RunError
from peftkit.evaluation.prediction import initialization_batches, move_to_device, predict
from peftkit.hub.resolve import find_model
from peftkit.loading.model import LoadedModel, load_model, load_tokenizer, meta_model
from peftkit.preprocessing.tokenization import encode
from peftkit.strategies.base import trainable
from peftkit.tasks.base import EvalSplit, Predictions, Task
from peftkit.training.integrity import frozen, reason_unchanged
from peftkit.training.optimizer import MasterWeightAdamW
from support.behavior_matrix import EVERYWHERE, HELD, WAYS
from support.task_rows import (
    Made,
    asked,
    classified,
    continued,
    instructed,
    labeled,
    related,
    rendered,
    scored,
    tagged,
    task_recipe,
)
from support.toy_models import ALONE

ROWS: dict[str, Made] = {
    "text_classification": classified,
    "regression": scored,
    "multilabel": labeled,
    "token_classification": tagged,
    "relation_extraction": related,
    "question_answering": asked,
    "instruction_tuning": instructed,
    "text_generation": continued,
    "translation": rendered,
    "summarization": rendered,
}
REWRITING = {"metric": "bits_per_byte", "generate": None, "template": "plain", "target_length": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "instruction_tuning": {"template": "plain"},
    "translation": REWRITING,
    "summarization": REWRITING,
}
WITH_HEADS = (
    "regression",
    "multilabel",
    "token_classification",
    "relation_extraction",
    "question_answering",
)
OF_LANGUAGE = ("instruction_tuning", "text_generation", "translation", "summarization")
WHOLE = os.environ.get("PEFTKIT_MATRIX") == "whole"
FEW = EVERYWHERE
MODELS = (["tiny-bert", "tiny-llama"], ["tiny-llama", "tiny-gpt2"])
"""Of tasks with heads, and of language models'."""


@dataclass(frozen=True)
class TaskCell:
    """One task, one way to train on one model, held in one way."""

    task: str
    way: str
    model: str
    quantize: str = "none"

    def __str__(self) -> str:
        return "-".join([self.task, self.way, self.model, self.quantize])

    @property
    def recipe(self) -> Recipe:
        """Raises `RecipeError` where the parts refuse each other."""
        task = {"kind": self.task, **SETTINGS.get(self.task, {})}
        return task_recipe(task, ROWS[self.task], self.model, WAYS[self.way], self.quantize)


def cells() -> list[TaskCell]:
    """CI's part: every way on one model a task, some ways held in 8 and 4 bits and elsewhere."""
    found, few = [], (tuple(WAYS) if WHOLE else FEW)
    for task in (*WITH_HEADS, *OF_LANGUAGE):
        first, *others = MODELS[task in OF_LANGUAGE]
        if task in ("translation", "summarization"):
            others += ["tiny-t5", "tiny-bart", "tiny-marian"]
        found += [TaskCell(task, way, first) for way in WAYS]
        found += [TaskCell(task, way, first, held) for way in few for held in HELD]
        found += [TaskCell(task, way, model) for way in few for model in others]
    return list(dict.fromkeys(found))


@cache
def refusal(cell: TaskCell) -> str | None:
    """Why the cell cannot be, in the words a user gets before anything loads; None if it can."""
    try:
        recipe = cell.recipe
        meta_model(recipe, find_model(cell.model).location, recipe.task.placeholder_names)
    except RecipeError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Ready:
    """A cell's model and rows."""

    recipe: Recipe
    assembled: LoadedModel
    examples: Any
    given: EvalSplit


def ready(cell: TaskCell, artifact: Path | None = None) -> Ready:
    recipe, source = cell.recipe, find_model(cell.model)
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    names = recipe.task.label_names(splits)
    recipe = recipe.model_copy(
        update={"task": recipe.task.with_fitted_state(recipe.task.fit_on_train(splits))}
    )
    tokenizer = load_tokenizer(source.location, recipe.task)
    examples = encode(recipe, splits, tokenizer, source, names)
    assembled = load_model(recipe, source, tokenizer, names, "fp32", artifact)
    state = recipe.task.fitted_state
    given = EvalSplit(
        splits.test, examples["test"], names, splits.train, resamples=0, fitted_state=state
    )
    return Ready(recipe, assembled, examples, given)


def trained(it: Ready, steps: int = 4) -> dict[str, float]:
    """Plain training; each trainable tensor's largest gradient."""
    recipe, module, task = it.recipe, it.assembled.module, it.recipe.task
    recipe.strategy.prepare(
        module, lambda: initialization_batches(recipe, it.assembled, it.examples)
    )
    optimizer = MasterWeightAdamW(
        trainable(module).items(), 1e-2, 0.0, 1.0, recipe.strategy.lr_multipliers(module)
    )
    optimizer.training_hook = recipe.strategy.training_hook(module, steps)
    largest = dict.fromkeys(trainable(module), 0.0)
    train = it.examples["train"]
    for step in range(steps):
        module.train()
        chosen = [train[(8 * step + i) % len(train)] for i in range(8)]
        batch = move_to_device(it.assembled.batcher(chosen), torch.device("cpu"))
        labels = batch.pop("labels")
        loss = task.loss(task.logits(module(**batch)), labels, 0.0) / max(1, task.known(labels))
        if optimizer.training_hook is not None:
            loss = loss + optimizer.training_hook.penalty()
        loss.backward()
        assert torch.isfinite(loss)
        for name, parameter in trainable(module).items():
            if parameter.grad is not None:
                largest[name] = max(largest[name], float(parameter.grad.abs().max()))
        optimizer.step()
    module.eval()
    return largest


def said(it: Ready) -> Predictions:
    return predict(it.assembled, it.recipe.task, it.examples["test"], ALONE)


def test_every_task_has_rows_here() -> None:
    known = {kind for kind, cls in Task.kinds().items() if cls.__module__.startswith("peftkit.")}
    assert known == ROWS.keys()


@pytest.mark.parametrize("cell", cells(), ids=str)
def test_every_task_is_trained_saved_and_loaded_again(
    cell: TaskCell,
    tmp_path: Path,
    subtests: pytest.Subtests,
    record_property: Callable[[str, object], None],
) -> None:
    reason = refusal(cell)
    record_property("task_cell", [cell.task, cell.way, cell.model, cell.quantize, reason])
    assert (reason is not None) == is_refused(cell), reason or "is not refused"
    if reason is not None:
        assert " - " in reason, "it says what to do"
        return
    it = ready(cell)
    was = {name: t.detach().clone() for name, t in frozen(it.assembled.module).items()}
    before = said(it)
    largest = trained(it)
    with subtests.test("frozen tensors stay bit for bit"):
        now = frozen(it.assembled.module)
        assert [name for name, tensor in was.items() if not torch.equal(now[name], tensor)] == []
    with subtests.test("everything trainable gets a gradient"):
        assert [n for n, most in largest.items() if most == 0 and reason_unchanged(n) is None] == []
    after = said(it)
    with subtests.test("what it says changes, and is scored"):
        assert different(before, after) > 0
        task = it.recipe.task
        scores = task.score(after, it.given)
        assert task.headline in scores.scores
        assert task.reading == "labels" or task.headline in scores.baseline
        lines = list(task.prediction_lines(after, it.given))
        assert len(lines) == len(it.given.rows)
    with subtests.test("the artifact on a fresh base says the same"):
        it.recipe.strategy.save(it.assembled.module, tmp_path)
        again = said(ready(cell, tmp_path))
        assert different(after, again) <= (1e-3 if cell.way in ("pissa", "olora") else 0)


def different(one: Predictions, other: Predictions) -> float:
    """The largest difference of what was kept of any example."""
    pairs = zip(one.outputs, other.outputs, strict=True)
    return max(float(np.abs(a - b).max(initial=0.0)) for a, b in pairs)


def is_refused(cell: TaskCell) -> bool:
    """Whether the cell is among those that cannot be."""
    from support.behavior_matrix import REFUSED

    against = REFUSED.get(cell.way, ())
    if cell.task in OF_LANGUAGE and cell.way == "linear_probe":
        return True
    return cell.quantize in against or cell.model.removeprefix("tiny-") in against


@pytest.mark.parametrize("task", list(ROWS))
def test_packed_answers_are_those_of_padded_ones(task: str) -> None:
    packed = ready(TaskCell(task, "lora", MODELS[task in OF_LANGUAGE][0]))
    assert packed.assembled.batcher.packed
    training = packed.recipe.training.model_copy(update={"packing": "off"})
    recipe = packed.recipe.model_copy(update={"training": training})
    source, tokenizer = find_model(recipe.model), packed.assembled.tokenizer
    alike = load_model(recipe, source, tokenizer, packed.given.names, "fp32")
    assert not alike.batcher.packed
    padded = Ready(recipe, alike, packed.examples, packed.given)
    assert different(said(packed), said(padded)) < 1e-4


@pytest.mark.parametrize("task", [*WITH_HEADS, *OF_LANGUAGE])
def test_a_run_of_every_task_is_recorded_answers_and_merges_with_its_proof(
    task: str, tmp_path: Path
) -> None:
    # tiny-llama's files have no output layer of its own
    model = "tiny-gpt2" if task in OF_LANGUAGE else "tiny-bert"
    recipe = TaskCell(task, "lora", model).recipe.but(
        training__steps=4, training__threads=1, training__proof="run", training__warmup_ratio=0.0
    )
    if task in OF_LANGUAGE:
        recipe = recipe.but(task__generate={"rows": 4, "max_new_tokens": 8})
    record = peftkit.train(recipe, tmp_path)
    assert record.status == "finished" and record.headline in record.scores
    run = tmp_path / record.folder_name
    lines = (run / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == record.rows["test"]
    made = ROWS[task](random.Random(1))
    inputs = {role: made[role] for role in recipe.task.inputs if role in made}
    (said,) = peftkit.predict(run, [inputs])
    assert said
    if task == "relation_extraction":
        with pytest.raises(RunError, match="adds markers to the vocabulary"):
            peftkit.merge(run, tmp_path / "merged")
        return
    merged = peftkit.merge(run, tmp_path / "merged")
    assert merged.proof is not None and merged.proof.largest <= merged.proof.tolerance


def test_a_language_model_without_an_output_layer_is_refused(tmp_path: Path) -> None:
    recipe = TaskCell("text_generation", "lora", "tiny-llama").recipe
    shutil.copytree(find_model("tiny-llama").location, tmp_path / "headless")
    elsewhere = recipe.but(model=str(tmp_path / "headless"))
    with pytest.raises(RecipeError, match=r"lack lm_head\.weight.*checkpoint of a language model"):
        peftkit.train(elsewhere, tmp_path / "runs")
