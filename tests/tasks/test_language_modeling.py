"""Language models: what is learned and scored of a text, however its rows are batched."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RecipeError
from peftkit.evaluation.prediction import merge_batches, predict_batches
from peftkit.tasks.base import EvalSplit, Task
from support.conversations import (
    CAUSAL,
    CHAT,
    PAIRS,
    QUESTIONS,
    TRANSLATION,
    WITH_ENCODER,
    encoded,
    made,
    stirred,
    summed,
    talk,
)


def test_a_models_word_on_a_token_is_its_output_at_the_one_before() -> None:
    recipe = talk("tiny-llama", CHAT)
    model = made(recipe, bare=True)
    example = {"input_ids": [2, 40, 41, 42, 3], "labels": [-100, -100, 41, -100, 3]}
    batch = model.batcher([example])
    assert batch["read_positions"].tolist() == [1, 3]
    assert batch["labels"].tolist() == [41, 3]
    plain = made(talk("tiny-llama", CHAT, "training.packing=off"), bare=True).module
    with torch.no_grad():
        chances = plain(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        by_hand = -(chances[1, 41] + chances[3, 3])
        found, count = summed(recipe, model, [example])
    torch.testing.assert_close(found, by_hand)
    assert count == 2


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_padded_and_single_rows_have_one_loss(name: str) -> None:
    packed, padded = talk(name, CHAT), talk(name, CHAT, "training.packing=off")
    models = [stirred(made(recipe)) for recipe in (packed, padded)]
    assert [model.batcher.packed for model in models] == [True, False]
    examples = encoded(packed, models[0], QUESTIONS)
    with torch.no_grad():
        together = [summed(packed, model, examples) for model in models]
        alone = [summed(packed, models[1], [example]) for example in examples]
    expected = sum(float(loss) for loss, _ in alone)
    assert [count for _, count in together] == [sum(count for _, count in alone)] * 2
    assert [float(loss) for loss, _ in together] == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_a_decoders_loss_is_transformers_own(name: str) -> None:
    recipe = talk(name, TRANSLATION)
    model = made(recipe, bare=True)
    examples = encoded(recipe, model, PAIRS)
    batch = model.batcher(examples)
    longest = max(len(example["labels"]) for example in examples)
    labels = [e["labels"] + [-100] * (longest - len(e["labels"])) for e in examples]
    with torch.no_grad():
        ids, mask = batch["input_ids"], batch["attention_mask"]
        theirs = model.module(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels)).loss
        found, count = summed(recipe, model, examples)
    assert count == sum(len(example["labels"]) for example in examples)
    torch.testing.assert_close(found / count, theirs)


@pytest.mark.parametrize(("name", "task", "rows"), [
    ("tiny-llama", CHAT, QUESTIONS),
    ("tiny-t5", TRANSLATION, PAIRS),
])  # fmt: skip
def test_micro_batches_add_up_to_the_gradient_of_one_large_batch(
    name: str, task: str, rows: Any
) -> None:
    recipe = talk(name, task)
    model = stirred(made(recipe))
    examples = encoded(recipe, model, rows)
    tokens = sum(summed(recipe, model, [example])[1] for example in examples)
    trained = {n: p for n, p in model.module.named_parameters() if p.requires_grad}

    def gradients(batches: list[list[Any]]) -> dict[str, torch.Tensor]:
        model.module.zero_grad()
        for batch in batches:
            (summed(recipe, model, batch)[0] / tokens).backward()
        return {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}

    whole, parts = gradients([examples]), gradients([examples[:1], examples[1:]])
    assert whole.keys() == trained.keys()
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-4, atol=1e-7)


def said_of(recipe: Recipe, model: Any, rows: Any) -> Any:
    """What evaluation says of the rows, and what it is scored against."""
    examples = encoded(recipe, model, rows)
    said = merge_batches(
        predict_batches(model, recipe.task, examples, [[2, 0], [1, 3]]),
        [e["labels"] for e in examples],
    )
    columns = {key: [example[key] for example in examples] for key in examples[0]}
    return said, EvalSplit(Dataset.from_dict(rows), columns, (), resamples=200)


def test_bits_per_byte_perplexity_and_loss_are_what_their_definitions_say() -> None:
    recipe = talk("tiny-llama", CHAT)
    model = made(recipe, bare=True)
    said, given = said_of(recipe, model, QUESTIONS)
    scores = recipe.task.score(said, given).scores
    assert list(scores) == ["bits_per_byte", "perplexity", "loss"]
    with torch.no_grad():
        nats, tokens = summed(recipe, model, encoded(recipe, model, QUESTIONS))
    size = sum(len(f" {answer}".encode()) for answer in QUESTIONS["answer"])
    assert scores["loss"].value == pytest.approx(float(nats) / tokens, rel=1e-5)
    assert scores["perplexity"].value == pytest.approx(math.exp(float(nats) / tokens), rel=1e-5)
    bits = float(nats) / math.log(2) / size
    assert scores["bits_per_byte"].value == pytest.approx(bits, rel=1e-5)
    assert scores["loss"].low < scores["loss"].value < scores["loss"].high  # type: ignore[operator]


def test_scores_of_texts_are_over_the_rows_that_were_generated() -> None:
    recipe = talk("tiny-llama", "{kind: instruction_tuning, template: plain, generate: {rows: 2}}")
    model = made(recipe, bare=True)
    said, given = said_of(recipe, model, QUESTIONS)
    told = type(said)(said.labels, said.outputs, said.loss, [None, "rain", "soup", None])
    scored = recipe.task.score(told, given)
    assert scored.scores["exact_match"].value == 0.5 and scored.scores["exact_match"].n == 2
    assert scored.scores["loss"].n == 4
    lines = list(recipe.task.prediction_lines(told, given))
    assert "generated" not in lines[0] and lines[0]["counts"][3:] == [None] * 6
    assert lines[1]["generated"] == "rain" and lines[1]["counts"][3] == 1.0
    columns = {"counts": [line["counts"] for line in lines]}
    assert recipe.task.row_values("exact_match", columns, ()) is None
    values = recipe.task.row_values("bits_per_byte", columns, ())
    assert values is not None
    assert float(np.mean(values)) == pytest.approx(scored.scores["bits_per_byte"].value, rel=1e-4)


def test_copies_and_constants_are_scored_beside_translations() -> None:
    recipe = talk("tiny-t5", TRANSLATION)
    model = made(recipe, bare=True)
    said, given = said_of(recipe, model, PAIRS)
    told = type(said)(said.labels, said.outputs, said.loss, list(PAIRS["target"]))
    train = Dataset.from_dict({**PAIRS, "target": ["b b", "a", "b b", "c"]})
    scored = recipe.task.score(told, EvalSplit(given.rows, given.examples, (), train, 50))
    assert scored.scores["chrf"].value == pytest.approx(100) and next(iter(scored.scores)) == "chrf"
    assert list(scored.baselines) == ["source", "constant"]
    assert scored.baseline == scored.baselines["source"]
    assert "tok:13a" in scored.details["signatures"]["bleu"]


def splits_of(**columns: list[Any]) -> Any:
    rows = len(next(iter(columns.values())))
    train = Dataset.from_dict({"row": [f"a:{i}" for i in range(rows)], **columns})
    return type("Splits", (), {"train": train, "validation": train, "test": train})


def test_conversations_without_answers_are_all_named_at_once() -> None:
    task = Task.parse("chat", "task")
    asked = [{"role": "user", "content": "x"}]
    with pytest.raises(DataError) as caught:
        task.label_names(splits_of(messages=[asked, asked]))
    said = str(caught.value)
    assert (
        "train, 2 of 2 rows (a:0, a:1): there is no message of the assistant" in said
        and "test, 2 of 2" in said
    )


def test_columns_of_no_format_say_which_there_are() -> None:
    task = Task.parse("instruction_tuning", "task")
    with pytest.raises(DataError, match=r"no known format .*alpaca: instruction, output"):
        task.label_names(splits_of(text=["a"]))
    named = Task.parse({"kind": "instruction_tuning", "format": "alpaca"}, "task")
    with pytest.raises(DataError, match=r"data.columns.instruction.*needs a column 'instruction'"):
        named.label_names(splits_of(prompt=["a"], completion=["b"]))


def test_rows_to_be_answered_may_each_come_in_another_format() -> None:
    task = Task.parse({"kind": "instruction_tuning", "template": "plain"}, "task")
    asked = {"question": ["x", None, None], "prompt": [None, "x", None]}
    rows = {**asked, "messages": [None, None, [{"role": "user", "content": "x"}]]}
    words = made(talk("tiny-llama", CHAT), bare=True).tokenizer
    for state in ({}, {"format": "question_answer"}):
        first, second, third = task.with_fitted_state(state).prompts(rows, words, 99)
        assert first == second == third


def test_a_score_of_texts_needs_texts() -> None:
    task = Task.parse({"kind": "translation", "generate": None}, "task")
    with pytest.raises(DataError, match="chrf is a score of generated texts"):
        task.label_names(splits_of(source=["a"], target=["b"]))


def test_an_encoder_continues_no_conversation() -> None:
    with pytest.raises(RecipeError, match=r"t5 has an encoder.*task=translation"):
        made(talk("tiny-t5", CHAT))


def test_settings_that_cannot_be_meant_are_refused() -> None:
    for task, said in (
        ("{kind: translation, prompt: translate}", "has no {source}"),
        ("{kind: chat, template: nowhere.jinja}", "is neither an existing file nor a template"),
        ("{kind: chat, generate: {extract: '('}}", "is no regular expression"),
    ):
        with pytest.raises(RecipeError, match=said):
            talk("tiny-llama", task)


def test_long_sources_are_cut_so_that_targets_fit() -> None:
    recipe = talk("tiny-llama", TRANSLATION, "data.max_length=40")
    model = made(recipe, bare=True)
    rows = {"source": ["the dog " * 40, "rain"], "target": ["a horse", "cloud"]}
    first, second = encoded(recipe, model, rows)
    assert (first["truncated"], second["truncated"]) == (True, False)
    assert len(first["input_ids"]) <= 40
    words = model.tokenizer
    assert words.decode([i for i in first["labels"] if i != -100]) == "a horse [SEP]"
    (prompt, _) = recipe.task.prompts(rows, words, 40)
    assert first["input_ids"][: len(prompt)] == prompt


def test_texts_are_led_by_their_attribute_and_end() -> None:
    recipe = talk("tiny-llama", "{kind: text_generation, attributes: [calm, wild]}")
    model = made(recipe, bare=True)
    rows = {"text": ["the dog", "rain and storm"], "attribute": ["wild", "calm"]}
    first, _ = encoded(recipe, model, rows)
    words = model.tokenizer
    assert words.convert_ids_to_tokens(first["input_ids"]) == [
        "[CLS]", "<|wild|>", "the", "dog", "[SEP]",
    ]  # fmt: skip
    assert first["labels"][:2] == [-100, -100] and first["labels"][2:] == first["input_ids"][2:]
    assert first["bytes"] == len("the dog")
    assert bool(torch.isfinite(summed(recipe, model, [first])[0]))


@pytest.mark.parametrize("way", ["prompt", "p_tuning"])
def test_a_prompt_before_a_decoder_is_refused(way: str) -> None:
    with pytest.raises(RecipeError, match="shifts it - use strategy=prefix"):
        made(talk("tiny-t5", TRANSLATION, f"strategy={way}"))
