"""A base that already has a head: it is reused, reordered by label names, or replaced, with a
note."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.hub.resolve import find_model
from peftkit.loading.heads import find_pretrained_head
from peftkit.loading.model import (
    LoadedModel,
    load_config,
    load_model,
    load_tokenizer,
    quiet_transformers,
)
from peftkit.merging.adapters import open_adapter
from peftkit.merging.verification.models import adapted
from support.toy_models import logits
from support.varied_rows import LABELS, classified, written

Varied = Callable[..., Path]
KEPT, ALIGNED = "is trained further", "is reordered to the run's labels"
OUTPUTS = {
    "bert": "classifier", "roberta": "classifier.out_proj", "llama": "score",
    "deberta-v2": "classifier", "bart": "classification_head.out_proj",
    "t5": "classification_head.out_proj",
}  # fmt: skip
"""The layer with a row per label."""


def recipe_on(folder: Path, task: str = "text_classification", *settings: str) -> Recipe:
    return Recipe.load("lora_tiny", f"model={folder}", f"task={task}", "data.rows=80", *settings)


def loaded(recipe: Recipe, names: Sequence[str], bare: bool = True) -> LoadedModel:
    source = find_model(recipe.model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    return load_model(recipe, source, tokenizer, names, "fp32", bare=bare)


def head_notes(made: LoadedModel) -> list[str]:
    return [note for note in made.notes if "head" in note]


def outputs(made: LoadedModel, layer: str) -> dict[str, torch.Tensor]:
    return {n: p for n, p in made.module.named_parameters() if n.startswith(f"{layer}.")}


def changed(folder: Path, to: Path, **config: Any) -> Path:
    """The base with other values in its configuration."""
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return to


def without(folder: Path, to: Path, layer: str) -> Path:
    """The base without a layer in its files."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{layer}.")}
    assert len(kept) < len(tensors)
    save_file(kept, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_a_head_for_these_labels_in_another_order_answers_as_it_did(
    architecture: str, varied: Varied
) -> None:
    folder = varied(architecture, head="reordered")
    with quiet_transformers():
        before = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    made = loaded(recipe_on(folder), LABELS)
    ids = made.tokenizer("the old bridge is near")["input_ids"]
    with torch.no_grad():
        was = before(input_ids=torch.tensor([ids])).logits[0]
    (now,) = logits(made, [{"input_ids": ids, "labels": 0}])
    known = {name: float(was[index]) for index, name in before.config.id2label.items()}
    assert known == {n: pytest.approx(float(x), abs=1e-5) for n, x in zip(LABELS, now, strict=True)}
    assert [known[n] for n in LABELS] != [float(x) for x in was]
    (note,) = head_notes(made)
    assert note.endswith(ALIGNED)


@pytest.mark.parametrize("architecture", OUTPUTS)
@pytest.mark.parametrize("head", ["other", "fewer"])
def test_a_head_for_other_labels_is_replaced_by_the_one_that_a_base_without_gets(
    architecture: str, head: str, varied: Varied, tmp_path: Path
) -> None:
    folder, layer = varied(architecture, head=head), OUTPUTS[architecture]
    made = loaded(recipe_on(folder), LABELS)
    (note,) = head_notes(made)
    known = json.loads((folder / "config.json").read_text())["id2label"].values()
    assert note == f"the head is new: the base's has other labels ({', '.join(known)})"
    bare = loaded(recipe_on(without(folder, tmp_path / "bare", layer)), LABELS)
    assert not head_notes(bare)
    for name, parameter in bare.module.named_parameters():
        assert torch.equal(parameter, made.module.get_parameter(name)), name
    other = loaded(recipe_on(folder, "text_classification", "training.seed=5"), LABELS)
    weight = f"{layer}.weight"
    assert not torch.equal(outputs(other, layer)[weight], outputs(made, layer)[weight])
    old = load_file(folder / "model.safetensors")[weight]
    assert not torch.equal(outputs(made, layer)[weight], old[: len(LABELS)])


def test_labels_that_nobody_named_are_not_taken_for_the_runs(
    varied: Varied, tmp_path: Path
) -> None:
    names = {str(index): f"LABEL_{index}" for index in range(3)}
    base = changed(varied("bert", head="problem_type"), tmp_path / "base", id2label=names)
    (note,) = head_notes(loaded(recipe_on(base), LABELS))
    assert note == "the head is new: the base's does not name its 3 labels"


def test_twice_the_same_label_is_no_order(varied: Varied, tmp_path: Path) -> None:
    names = {"0": LABELS[0], "1": LABELS[0], "2": LABELS[1]}
    base = changed(varied("bert", head="problem_type"), tmp_path / "base", id2label=names)
    assert head_notes(loaded(recipe_on(base), LABELS))[0].startswith("the head is new")


TASKS = {
    "text_classification": "single_label_classification",
    "relation_extraction": "single_label_classification",
    "multilabel": "multi_label_classification",
    "{kind: regression, targets: [market, music, river]}": "regression",
}


@pytest.mark.parametrize("task", TASKS)
def test_what_the_base_was_for_is_forgotten_by_the_task(task: str, varied: Varied) -> None:
    base = varied("bert", head="problem_type")
    recipe = recipe_on(base, task)
    assert load_config(recipe, str(base), LABELS).problem_type == TASKS[task]
    made = loaded(recipe, LABELS)
    assert head_notes(made)[0].endswith(KEPT) and made.module.config.problem_type == TASKS[task]
    names = dict(enumerate(LABELS))
    assert (made.module.config.id2label, made.module.config.num_labels) == (names, 3)


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def of_another_task(base: Path, auto_class: Any, to: Path, **config: Any) -> Path:
    """The base with a random head of another class."""
    with quiet_transformers():
        torch.manual_seed(9)
        model = auto_class.from_pretrained(base, **config)
        model.save_pretrained(to)
    AutoTokenizer.from_pretrained(base).save_pretrained(to)
    return to


def test_a_tagger_of_the_same_tags_is_aligned_and_of_others_replaced(
    varied: Varied, tmp_path: Path
) -> None:
    tags = dict(enumerate(TAGS[::-1]))
    kind: Any = AutoModelForTokenClassification
    leftover = {"id2label": tags, "problem_type": "multi_label_classification"}
    base = of_another_task(varied("bert"), kind, tmp_path / "base", **leftover)
    made = loaded(recipe_on(base, "token_classification"), TAGS)
    assert head_notes(made)[0].endswith(ALIGNED) and made.module.config.problem_type is None
    old = load_file(base / "model.safetensors")
    assert torch.equal(
        outputs(made, "classifier")["classifier.weight"], old["classifier.weight"].flip(0)
    )
    new = loaded(recipe_on(base, "token_classification"), TAGS[:3])
    assert head_notes(new) == [
        "the head is new: the base's has other labels (I-LOC, B-LOC, I-PER, B-PER, O)"
    ]
    assert outputs(new, "classifier")["classifier.weight"].shape[0] == 3


def test_a_head_of_another_task_is_replaced_though_its_labels_are_the_same(
    varied: Varied,
) -> None:
    made = loaded(recipe_on(varied("bert", head="reordered"), "token_classification"), LABELS)
    assert head_notes(made) == ["the head is new: the base's is for another task"]


def test_a_head_that_finds_spans_is_trained_on(varied: Varied, tmp_path: Path) -> None:
    kind: Any = AutoModelForQuestionAnswering
    base = of_another_task(varied("bert"), kind, tmp_path / "base")
    made = loaded(recipe_on(base, "question_answering"), ())
    assert head_notes(made) == ["the base's head is trained further"]
    old = load_file(base / "model.safetensors")
    assert torch.equal(outputs(made, "qa_outputs")["qa_outputs.weight"], old["qa_outputs.weight"])


def test_one_number_more_to_tell_gets_a_new_head(varied: Varied) -> None:
    base = varied("bert", head="fewer")
    made = loaded(recipe_on(base, "regression"), ("value",))
    assert head_notes(made)[0].startswith("the head is new") and made.module.config.num_labels == 1


def test_files_that_do_not_fit_their_configuration_are_refused_with_a_new_head_too(
    varied: Varied, tmp_path: Path
) -> None:
    base = changed(varied("bert", head="fewer"), tmp_path / "base", intermediate_size=96)
    with pytest.raises(RecipeError, match=r"do not fit its config.json \(bert.encoder"):
        loaded(recipe_on(base), LABELS)


def test_a_base_without_a_head_is_asked_nothing(varied: Varied) -> None:
    base = varied("bert")
    recipe = recipe_on(base)
    config = load_config(recipe, str(base), LABELS)
    assert find_pretrained_head(recipe.task, config, str(base), LABELS) is None


def test_a_run_on_a_base_with_a_head_is_reloaded_merged_and_opened_as_it_was_trained(
    varied: Varied, tmp_path: Path
) -> None:
    left = {"problem_type": "multi_label_classification"}
    base = changed(varied("roberta", head="fewer"), tmp_path / "base", **left)
    data = written(tmp_path / "rows", classified, ["Latin"])
    how = "steps: 6, threads: 1, batch_size: 6, precision: fp32, lr: 0.01, proof: run"
    files = f"data={{kind: files, path: {data}, max_length: 96}}"
    recipe = Recipe.load(
        "lora_tiny", f"model={base}", "task.untrained_baseline=false", files, f"training={{{how}}}"
    )
    record = peftkit.train(recipe, tmp_path / "runs")
    assert any("the head is new" in note for note in record.notes)
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/record.json"))
    trained = json.loads((run / "artifact" / "config.json").read_text())
    assert "ignore_mismatched_sizes=True" in (run / "artifact" / "README.md").read_text()
    peftkit.merge(run, tmp_path / "merged", verify="off")
    proving = adapted(open_adapter(run), base, tmp_path / "merged", "trained", torch.float32)
    merged = json.loads((tmp_path / "merged" / "config.json").read_text())
    for config in (trained, merged):
        assert config["problem_type"] == "single_label_classification"
        assert list(config["id2label"].values()) == list(LABELS)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    texts = [row["text"] for row in classified("Latin", 6, 9)]
    for text, answer in zip(texts, peftkit.predict(run, texts), strict=True):
        with torch.no_grad():
            for opened in (model, proving):
                sure = opened(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
                found = list(answer["probabilities"].values())
                assert found == pytest.approx(sure.tolist(), abs=1e-4)
