"""Plans: counts, memory and steps without loading weights; what cannot work is rejected."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RecipeError
from peftkit.hub.resolve import find_model
from peftkit.planning.plan import Plan, plan
from support.commands import peftkit as peftkit_
from support.commands import python
from support.task_rows import related, task_recipe
from support.toy_models import NAMES, load_toy, toy


def planned(*overrides: str, model: str = "tiny-bert") -> Plan:
    return plan(toy(model, "data.rows=400", *overrides))


def test_a_plan_loads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    recipe = toy("tiny-bert", "quantize=4bit", "data.rows=400")
    found = peftkit.plan(recipe)
    monkeypatch.undo()
    assert found.parameters == load_toy(recipe).parameters


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (("training.epochs=2", "training.batch_size=16"), 34),
        (("training.epochs=1.5", "training.batch_size=16"), 26),
        (("training.epochs=1", "training.batch_size=100"), 2),
        (("training.steps=7",), 7),
    ],
)
def test_steps_are_known_where_the_data_are_made_up(settings: tuple[str, ...], steps: int) -> None:
    """400 rows: 80 for test, 40 for validation, 280 for training; a step has whole batches."""
    assert planned(*settings).steps == steps


def test_steps_and_labels_are_known_where_the_data_lie_on_this_disk(tmp_path: Path) -> None:
    with open(tmp_path / "train.csv", "w", newline="") as file:
        rows = [[f"text number {i} of them", "abc"[i % 3]] for i in range(60)]
        csv.writer(file).writerows([["text", "label"], *rows])
    data = {"kind": "files", "path": str(tmp_path), "validation": 10, "test": 10, "max_length": 32}
    recipe = toy("tiny-bert").but(data=data, training={"batch_size": 8, "epochs": 2})
    found = plan(recipe)
    assert (found.steps, found.parameters.head) == (10, 3 * 64 + 3)
    assert found.notes == ["computes in bf16"] or found.notes == ["computes in fp32"]
    with pytest.raises(DataError, match="no such file"):
        plan(recipe.but(data={**data, "path": str(tmp_path / "gone")}))


def test_steps_are_not_known_where_the_data_would_have_to_be_fetched() -> None:
    hub = {"kind": "hub", "path": "nobody/knows_this", "max_length": 32}
    found = plan(toy("tiny-bert").but(data=hub))
    assert found.steps is None
    assert any("two labels assumed" in note for note in found.notes)


def test_a_batch_larger_than_the_train_split_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"training.batch_size: a batch has 512 .* the train split 280"
    ):
        planned("training.batch_size=512")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("{kind: lora, targets: [q_proj]}", "no layer of this model is named 'q_proj'"),
        ("{kind: frozen, last: 9}", "the model has 2 blocks"),
        ("{kind: frozen, patterns: [nothing]}", "matches no parameter"),
    ],
)
def test_what_fits_no_layer_is_refused_on_the_meta_device(strategy: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(f"strategy={strategy}")


def activations(strategy: str, *overrides: str) -> int:
    return planned(f"strategy={strategy}", *overrides).memory.activations


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_only_blocks_that_train_or_stand_above_keep_activations(model: str) -> None:
    kept = {
        strategy: planned(f"strategy={strategy}", model=model).memory.activations
        for strategy in ("full", "lora", "{kind: frozen, last: 1}", "{kind: frozen, last: 0}")
    }
    full, lora, last, probe = kept.values()
    assert full == lora == 2 * last
    assert probe < last / 2
    low = "{kind: frozen, last: 0, patterns: ['*embed*']}"
    assert planned(f"strategy={low}", model=model).memory.activations == full


def test_memory_follows_what_it_is_made_of() -> None:
    bf16, fp32 = (planned(f"training.precision={p}").memory for p in ("bf16", "fp32"))
    assert fp32.activations == 2 * bf16.activations and fp32.weights > bf16.weights
    assert fp32.gradients == bf16.gradients == 4 * planned().parameters.trainable
    assert planned("quantize=4bit").memory.weights < planned("quantize=8bit").memory.weights
    assert activations("full", "training.gradient_checkpointing=true") < activations("full")
    assert bf16.total == sum(bf16.model_dump().values())
    assert (bf16.process == 0) == torch.cuda.is_available()


def test_the_micro_batch_stays_within_its_tokens() -> None:
    assert planned("training.batch_size=64", "training.max_tokens=1024").micro_batch_size == 32
    assert planned("training.batch_size=64", "training.micro_batch_size=4").micro_batch_size == 4


def test_a_plan_is_plain_data() -> None:
    printed = json.loads(planned().model_dump_json())
    assert printed["parameters"]["trainable"] == planned().parameters.trainable
    assert printed["launch"].endswith("recipe=lora_tiny")


@pytest.mark.slow
def test_the_launch_line_of_a_plan_runs_what_was_planned_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "my recipe.yaml").write_text("base: lora_tiny\ntraining: {epochs: 1}\n")
    asked = ["my recipe.yaml", "strategy.r=2", "data.limit={train: 32, test: 16}"]
    printed = json.loads(peftkit_("plan", *asked, "--json", cwd=tmp_path).stdout)
    launcher, *line = shlex.split(printed["launch"])
    assert launcher == "accelerate"
    done = python("-m", "accelerate.commands.accelerate_cli", *line, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["parameters"]["trainable"] == printed["parameters"]["trainable"]
    assert record["steps"] == printed["steps"]


def test_what_is_planned_is_what_a_run_counts_with_many_classes() -> None:
    recipe: Recipe = toy("tiny-bert", "data.classes=5")
    from peftkit.loading.model import load_model, load_tokenizer

    source = find_model("tiny-bert")
    names = [*NAMES, "c", "d", "e"]
    made = load_model(recipe, source, load_tokenizer(source.location), names, "fp32")
    assert plan(recipe).parameters == made.parameters


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_what_is_planned_counts_the_markers_that_a_task_adds(strategy: str) -> None:
    recipe = task_recipe({"kind": "relation_extraction"}, related, "tiny-bert", strategy, "none")
    from peftkit.loading.model import load_model, load_tokenizer

    source = find_model("tiny-bert")
    names = ["Is-A(e1,e2)", "Is-A(e2,e1)", "Other"]
    tokenizer = load_tokenizer(source.location, recipe.task)
    made = load_model(recipe, source, tokenizer, names, "fp32")
    assert plan(recipe).parameters == made.parameters
