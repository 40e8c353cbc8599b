"""What a model has no positions for is refused by a plan, with the setting to change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError

Varied = Callable[..., Path]


def recipe(model: Path | str, task: str, *settings: str) -> Recipe:
    data = "data={kind: files, path: nowhere, max_length: 60}"
    return Recipe.load("lora_tiny", f"model={model}", f"task={task}", data, *settings)


def refusal(asked: Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        peftkit.plan(asked)
    return str(caught.value)


@pytest.mark.parametrize("architecture", ["bart", "marian"])
def test_a_decoder_says_no_more_than_it_has_positions_for(
    architecture: str, varied: Varied
) -> None:
    model = varied(architecture, files="slow" if architecture == "marian" else "fast")
    said = refusal(
        recipe(
            model,
            "translation",
            "task.target_length=131",
            "task.generate={max_new_tokens: 200}",
        )
    )
    assert "task.target_length: the model's decoder says at most 130 tokens (got 131)" in said
    assert "task.generate.max_new_tokens: the model's decoder says at most 130" in said
    assert said.count("- use 130 or less") == 2
    most = ("task.target_length=130", "task.generate={max_new_tokens: 130}")
    assert peftkit.plan(recipe(model, "translation", *most)).steps is None
    assert peftkit.plan(recipe(model, "summarization", "task.generate=null")).steps is None


def test_a_decoder_without_positions_says_any_number(varied: Varied, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(varied("t5"), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]  # which no published T5 has
    (folder / "config.json").write_text(json.dumps(config))
    long = ("task.target_length=999", "task.generate={max_new_tokens: 2000}")
    assert peftkit.plan(recipe(folder, "translation", *long)).parameters.total


def test_a_decoder_has_room_for_all_that_it_may_say(varied: Varied) -> None:
    """The limit is the model's own: one token more is one too many."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(varied("bart")).eval()
    ids, rows = torch.tensor([[5, 6, 7]]), torch.full((1, 131), 5)
    with torch.no_grad():
        model(input_ids=ids, decoder_input_ids=rows[:, :130])
        with pytest.raises(IndexError):
            model(input_ids=ids, decoder_input_ids=rows)
        how = {"do_sample": False, "min_new_tokens": 130, "max_new_tokens": 130}
        assert model.generate(ids, **how).shape[1] == 131


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_causal_model_needs_room_for_a_question_too(architecture: str, varied: Varied) -> None:
    model = varied(architecture)
    said = refusal(recipe(model, "text_generation", "task.generate={max_new_tokens: 130}"))
    what = "task.generate.max_new_tokens: leaves room for no question: 129 tokens do (got 130)"
    assert f"{what} - use 129 or less" in said
    assert peftkit.plan(recipe(model, "text_generation", "task.generate={max_new_tokens: 129}"))
    said = refusal(recipe(model, "translation", "task.target_length=60"))
    assert "task.target_length: leaves room for no question: 59 tokens do (got 60)" in said
    prompts = "strategy={kind: prompt, num_virtual_tokens: 10}"
    said = refusal(recipe(model, "text_generation", "task.generate={max_new_tokens: 125}", prompts))
    assert "119 tokens do (got 125) - use 119 or less" in said


def test_an_encoder_that_classifies_is_asked_for_no_answers(varied: Varied) -> None:
    assert peftkit.plan(recipe(varied("bert"), "text_classification")).steps is None
    said = refusal(recipe(varied("bert"), "text_classification", "data.max_length=140"))
    assert "data.max_length: the model reads at most 130 tokens (got 140)" in said
