"""Merging runs of language models: what has an output layer of its own keeps it."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.auto import modeling_auto

import peftkit
from peftkit.config.composition import Composition, parse_overrides
from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.merging.merge import merge_rows
from peftkit.merging.model_classes import auto_class_of
from peftkit.merging.tensor_names import match_names
from support.peft_adapters import LANGUAGE, adapter
from support.run_processes import command
from support.task_rows import Made, instructed, rendered, task_recipe
from support.varied_models import VariedModel, build

pytestmark = pytest.mark.usefixtures("proof_in_this_process")
CHAT: dict[str, Any] = {"kind": "instruction_tuning", "template": "plain"}
TRANSLATION: dict[str, Any] = {
    "kind": "translation",
    "target_length": 16,
    "generate": {"rows": 4, "max_new_tokens": 8},
}
SUMMARY: dict[str, Any] = {**TRANSLATION, "kind": "summarization"}
LORA = "{kind: lora, r: 4}"
EMBEDDINGS = "{kind: frozen, last: 0, embeddings: true}"


def trained(
    folder: Path, base: Path | str, task: dict[str, Any], make: Made, strategy: str, *more: str
) -> Path:
    """A finished run of a few steps."""
    recipe = task_recipe(task, make, str(base), strategy, "none")
    composition = Composition("made", recipe.settings())
    quick = "training={steps: 4, threads: 1, proof: run, batch_size: 8, precision: fp32, lr: 0.01}"
    for override in parse_overrides([quick, "data.truncation=all", *more], "test"):
        composition.set(*override)
    peftkit.train(Recipe.of(composition), folder)
    return next(path.parent for path in folder.glob("*/record.json"))


def opened(folder: Path) -> Any:
    """The merged model as anybody opens it, by its Auto class, with nothing missing or left."""
    config = json.loads((folder / "config.json").read_text())
    loader = getattr(transformers, auto_class_of(config))
    model, said = loader.from_pretrained(folder, output_loading_info=True)
    assert not any(said.values()), said
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "strategy"),
    [
        ("llama", LORA),
        ("llama", "ia3"),
        ("llama", "oft"),
        ("llama", f"[layernorm, {EMBEDDINGS}]"),
        ("mistral", LORA),
        ("qwen2", "full"),
    ],
)
def test_an_output_layer_of_its_own_is_in_the_merged_checkpoint(
    architecture: Any, strategy: str, tmp_path: Path
) -> None:
    base = build(VariedModel(architecture, tied=False), tmp_path)
    run = trained(tmp_path / "runs", base, CHAT, instructed, strategy)
    made = peftkit.merge(run, tmp_path / "merged", verify="off")
    assert made.dropped == [] and made.unexpected == [] and made.changed > 0
    assert made.opens_as == type(opened(tmp_path / "merged")).__name__
    found, before = (load_file(p / "model.safetensors") for p in (tmp_path / "merged", base))
    assert found.keys() == before.keys()
    assert torch.equal(found["lm_head.weight"], before["lm_head.weight"]) == (strategy != "full")


@pytest.mark.parametrize(
    ("model", "task", "strategy", "quantize"),
    [
        (VariedModel("llama", tied=False), CHAT, LORA, "4bit"),
        (VariedModel("t5"), SUMMARY, LORA, "none"),
        (VariedModel("t5", tied=False), TRANSLATION, LORA, "none"),
        (VariedModel("bart"), TRANSLATION, "full", "none"),
        (VariedModel("marian", tokenizer="wordpiece"), TRANSLATION, LORA, "4bit"),
    ],
    ids=str,
)
def test_a_run_whose_answer_is_text_is_merged_with_proof(
    model: VariedModel, task: dict[str, Any], strategy: str, quantize: str, tmp_path: Path
) -> None:
    base = build(model, tmp_path)
    make = instructed if task is CHAT else rendered
    run = trained(tmp_path / "runs", base, task, make, strategy, f"quantize={quantize}")
    made = peftkit.merge(run, tmp_path / "merged")
    assert made.proof is not None and made.proof.rows == 12
    assert made.proof.texts == "the run's held-out rows"
    assert made.proof.largest < 1e-5 * made.proof.largest_logit
    assert made.proof.answers is not None and made.proof.answers.equal == 8
    assert type(opened(tmp_path / "merged")).__name__ == made.opens_as


def test_a_trained_table_is_put_in_the_place_of_all_its_copies(tmp_path: Path) -> None:
    base = build(VariedModel("t5"), tmp_path)
    run = trained(tmp_path / "runs", base, TRANSLATION, rendered, "full")
    copied = tmp_path / "copied"
    shutil.copytree(base, copied)
    held = load_file(base / "model.safetensors")
    places = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    held |= {f"{place}.weight": held["shared.weight"].clone() for place in places}
    save_file(held, copied / "model.safetensors", metadata={"format": "pt"})
    again = trained(tmp_path / "again", copied, TRANSLATION, rendered, "full")
    peftkit.merge(run, tmp_path / "one", verify="off")
    peftkit.merge(again, tmp_path / "many", verify="off")
    one, many = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "many"))
    assert all(torch.equal(many[f"{place}.weight"], one["shared.weight"]) for place in places)
    assert not torch.equal(one["shared.weight"], held["shared.weight"])
    lora = trained(tmp_path / "lora", copied, TRANSLATION, rendered, LORA)
    made = peftkit.merge(lora, tmp_path / "with lora", verify="off")
    assert not made.untied
    found = load_file(tmp_path / "with lora" / "model.safetensors")
    assert all(torch.equal(found[f"{place}.weight"], held["shared.weight"]) for place in places)


@pytest.mark.parametrize("verify", ["off", None])
def test_what_the_base_never_had_is_missed_whether_or_not_it_is_proven(
    verify: str | None, tmp_path: Path
) -> None:
    # the tiny model as it is shipped: an untied Llama without an output layer
    run = trained(tmp_path / "runs", "tiny-llama", CHAT, instructed, LORA)
    with pytest.raises(RunError, match=r"lacks lm_head.weight, which LlamaForCausalLM has"):
        peftkit.merge(run, tmp_path / "merged", verify=verify)
    assert not list(tmp_path.glob("merged*"))


CHECKED = "import sys, peftkit; peftkit.merge(sys.argv[1], sys.argv[2], verify='off')"


def test_it_is_missed_by_a_process_without_transformers_too(tmp_path: Path) -> None:
    base = build(VariedModel("llama", tied=False), tmp_path)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type=LANGUAGE)
    held = adapter(tmp_path / "adapter", base, config)
    kept = load_file(base / "model.safetensors")
    del kept["lm_head.weight"]
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    done = command(tmp_path, "-c", CHECKED, str(held), "again")
    assert "RunError: the merged checkpoint lacks lm_head.weight" in done.said
    assert not list(tmp_path.glob("again*"))


def test_what_the_class_leaves_aside_is_named_and_of_the_adapters_refused(tmp_path: Path) -> None:
    base = build(VariedModel("llama"), tmp_path)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type=LANGUAGE)
    held = adapter(tmp_path / "adapter", base, config)
    kept = load_file(base / "model.safetensors")
    kept["old_head.weight"] = torch.ones(3)
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    made = peftkit.merge(held, tmp_path / "merged", verify="off")
    assert made.unexpected == ["old_head.weight"]
    assert any(row["what"] == "not used" for row in merge_rows(made))
    name = "base_model.model.old_head.weight"
    path = held / "adapter_model.safetensors"
    save_file({**load_file(path), name: torch.zeros(3)}, path)
    with pytest.raises(RunError, match=r"has old_head.weight of the adapter's, which Llama"):
        peftkit.merge(held, tmp_path / "other", verify="off")


@pytest.mark.parametrize(
    ("table", "auto"),
    [
        ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
        ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
        ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForSequenceClassification"),
        ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "AutoModelForTokenClassification"),
        ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES", "AutoModelForQuestionAnswering"),
    ],
)
def test_every_class_that_reads_text_is_opened_by_its_auto_class(table: str, auto: str) -> None:
    # a class of several kinds of input is in several of transformers' tables
    others = {*modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values()}
    names = {name for name in getattr(modeling_auto, table).values() if name not in others}
    assert len(names) > 20
    assert {auto_class_of({"architectures": [name]}) for name in names} == {auto}


def test_a_head_alone_is_not_taken_for_a_layer_of_a_base_without_one() -> None:
    bare = ["embed_tokens.weight", "layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"]
    assert match_names(["score.weight"], bare).in_checkpoint("score.weight") is None
    asks = ["transformer.layers.0.mlp.up_proj.weight", "qa_outputs.weight"]
    names = match_names(asks, [f"model.{name}" for name in bare])
    assert names.in_checkpoint(asks[0]) == "model.layers.0.mlp.up_proj.weight"
    assert names.in_checkpoint(asks[1]) is None
