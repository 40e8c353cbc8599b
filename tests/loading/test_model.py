"""Loading a model: what is compatible, what is rejected, and the resulting configuration."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_config, load_tokenizer, meta_model
from peftkit.strategies.base import trainable
from support.toy_models import NAMES, load_toy, logits, rows, toy, train


def refusal(recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        meta_model(recipe, find_model(recipe.model).location, NAMES)
    return str(caught.value)


def dropouts(recipe: Recipe) -> set[float]:
    config = load_config(recipe, find_model(recipe.model).location, NAMES)
    named = config.to_dict().items()
    return {v for k, v in named if ("drop" in k) and isinstance(v, int | float)}


def test_a_model_without_a_head_for_the_task_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    recipe = toy("tiny-bert")
    with pytest.raises(RecipeError, match="architecture 'vit' has no head for 'task: text_classif"):
        load_config(recipe, str(tmp_path), NAMES)


@pytest.mark.parametrize(("model", "most"), [("tiny-bert", 130), ("tiny-roberta", 129)])
def test_a_length_above_the_models_limit_is_refused_with_the_limit(model: str, most: int) -> None:
    message = refusal(toy(model, "data.max_length=131"))
    assert f"data.max_length: the model reads at most {most} tokens (got 131)" in message
    assert f"use data.max_length={most}" in message
    meta_model(toy(model, f"data.max_length={most}"), find_model(model).location, NAMES)


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta", "tiny-gpt2"])
@torch.no_grad()
def test_a_text_of_the_longest_length_can_be_read(model: str) -> None:
    most = 129 if model == "tiny-roberta" else 130
    text = {"input_ids": [2, *[50] * (most - 2), 3], "labels": 0}
    for packing in ("auto", "off"):
        made = load_toy(toy(model, f"data.max_length={most}", f"training.packing={packing}"))
        assert logits(made, [text, text]).isfinite().all()


def test_targets_that_match_nothing_are_listed_with_those_that_would() -> None:
    message = refusal(
        toy("tiny-bert", "strategy={kind: lora, targets: [q_proj, query, outptu.dense]}")
    )
    assert "strategy.targets: no layer of this model is named 'q_proj'" in message
    assert "attention.self.query" in message
    assert "did you mean 'output.dense'?" in message


def test_targets_choose_layers() -> None:
    made = load_toy(toy("tiny-bert", "strategy={kind: lora, targets: [query, value]}"))
    adapted = {n.split(".lora_")[0] for n in trainable(made.module) if "lora" in n}
    assert len(adapted) == 4 and all(n.endswith(("query", "value")) for n in adapted)


def test_more_last_blocks_than_there_are_is_refused() -> None:
    message = refusal(toy("tiny-bert", "strategy={kind: frozen, last: 3}"))
    assert "strategy.last: the model has 2 blocks (got 3) - use at most that many" in message


def test_a_pattern_that_names_nothing_is_refused() -> None:
    message = refusal(toy("tiny-bert", "strategy={kind: frozen, patterns: ['*.Layernorm.*']}"))
    assert "strategy.patterns: '*.Layernorm.*' matches no parameter" in message


def test_dropout_follows_what_trains_and_what_is_asked() -> None:
    auto = "training.dropout=auto"
    assert dropouts(toy("tiny-bert", "strategy=full", auto)) == {0.1}
    assert dropouts(toy("tiny-bert", "strategy=lora", auto)) == {0.0}
    assert dropouts(toy("tiny-bert", "strategy=frozen", auto)) == {0.0}
    assert dropouts(toy("tiny-bert", "strategy=lora", "training.dropout=0.2")) == {0.2}
    assert dropouts(toy("tiny-bert", "strategy=full", "training.dropout=0")) == {0.0}
    note = "dropout is 0 because the base is frozen (training.dropout=auto)"
    assert load_toy(toy("tiny-bert", "strategy=lora", auto)).notes == (note,)
    assert load_toy(toy("tiny-bert", "strategy=full", auto)).notes == ()


def test_dropout_that_the_model_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dry(type(AutoConfig.for_model("llama"))):  # type: ignore[misc]
        def to_dict(self) -> dict[str, Any]:
            return {k: v for k, v in super().to_dict().items() if "dropout" not in k}

    monkeypatch.setattr(
        "peftkit.loading.model.AutoConfig.from_pretrained",
        lambda *_, **__: Dry(num_hidden_layers=2),
    )
    monkeypatch.setattr("peftkit.loading.model.first_position", lambda _: 0)
    recipe = toy("tiny-llama", "training.dropout=0.1")
    monkeypatch.setattr(
        type(recipe.task), "auto_class", lambda *_: type("", (), {"_model_mapping": {Dry: 1}})
    )
    with pytest.raises(RecipeError, match=r"'llama' has no dropout \(got 0.1\) - use 0 or auto"):
        load_config(recipe, str(tmp_path), NAMES)


def test_the_labels_names_are_kept_in_the_configuration() -> None:
    for strategy in ("full", "lora", "adapter", "frozen"):
        config = load_toy(toy("tiny-bert", f"strategy={strategy}")).module.config
        assert config.id2label == {0: "sport", 1: "food"}
        assert config.label2id == {"sport": 0, "food": 1}


def test_packing_off_is_said() -> None:
    made = load_toy(toy("tiny-bert", "training.packing=off"))
    assert not made.batcher.packed
    assert made.notes == ("padded: training.packing=off",)


def test_one_seed_one_start() -> None:
    first, again, other = (
        load_toy(toy("tiny-bert", "strategy=adapter", f"training.seed={s}")) for s in (1, 1, 2)
    )
    examples = rows("tiny-bert")["test"]
    assert torch.equal(logits(first, examples), logits(again, examples))
    assert not torch.equal(logits(first, examples), logits(other, examples))


def test_the_base_rests_in_bf16_and_the_head_in_fp32() -> None:
    module = load_toy(toy("tiny-bert"), "bf16").module
    for name, parameter in module.named_parameters():
        assert parameter.dtype == (torch.float32 if "classifier" in name else torch.bfloat16), name


def test_a_pretrained_padding_id_is_left_alone(tmp_path: Path) -> None:
    """RoBERTa's positions start after it: a tokenizer must not move them."""
    source = find_model("tiny-roberta")
    for path in Path(source.location).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "pad_token_id": 1}))
    made = load_toy(toy(str(tmp_path)))
    assert load_tokenizer(str(tmp_path)).pad_token_id == 0
    assert (made.module.config.pad_token_id, made.batcher.first_position) == (1, 2)


def test_a_tokenizer_without_padding_gets_some(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(find_model("tiny-llama").location)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "[SEP]"


def test_lora_says_nothing_of_what_peft_and_transformers_disagree_on(tmp_path: Path) -> None:
    recipe = toy("tiny-bert")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", UserWarning)
        made = load_toy(recipe)
        recipe.strategy.save(made.module, tmp_path)
        load_toy(recipe, artifact=tmp_path)
        load_toy(toy("tiny-gpt2"))


# peft itself, outside our calls, still reads the renamed property
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_a_lora_artifact_loads_with_plain_peft(model: str, tmp_path: Path) -> None:
    from peft import PeftModel

    recipe = toy(model)
    made = load_toy(recipe)
    train(recipe, made, steps=3)
    recipe.strategy.save(made.module, tmp_path)
    location = find_model(model).location
    tokenizer = load_tokenizer(location)
    base = AutoModelForSequenceClassification.from_pretrained(
        location, num_labels=2, pad_token_id=tokenizer.pad_token_id
    )
    plain = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    examples = rows(model)["test"]
    batch = tokenizer.pad({"input_ids": examples["input_ids"]}, return_tensors="pt")
    found = plain(**batch).logits.detach()
    torch.testing.assert_close(found, logits(made, examples), atol=1e-5, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_full_artifact_with_its_configuration_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    recipe = toy("tiny-bert", "strategy=full")
    made = load_toy(recipe)
    train(recipe, made, steps=2)
    recipe.strategy.save(made.module, tmp_path)
    made.module.config.save_pretrained(tmp_path)
    assert "peftkit" not in (tmp_path / "config.json").read_text()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert plain.config.id2label == {0: "sport", 1: "food"}
    examples = rows("tiny-bert")["test"]
    for index in range(4):
        alone = plain(torch.tensor([examples[index]["input_ids"]])).logits.detach()
        torch.testing.assert_close(alone, logits(made, [examples[index]]), atol=1e-5, rtol=1e-5)


def test_an_artifact_of_another_recipe_is_refused(tmp_path: Path) -> None:
    from peftkit.errors import RunError

    recipe = toy("tiny-bert", "strategy={kind: adapter, variant: houlsby}")
    recipe.strategy.save(load_toy(recipe).module, tmp_path)
    other = toy("tiny-bert", "strategy={kind: adapter, variant: parallel}")
    with pytest.raises(RunError, match="the saved tensors are not those that train"):
        load_toy(other, artifact=tmp_path)
