"""Generation: one text whatever it is batched with, under every strategy, and the model as it was
afterwards."""

from typing import Any

import pytest
import torch

from peftkit.evaluation.generation import generate, generate_tokens, sample_rows
from peftkit.evaluation.streaming import cut_at_stop
from peftkit.models.architectures import unwrap_model
from peftkit.models.packed_attention import PACKED
from peftkit.tasks.language_modeling.generation_settings import Generation
from support.conversations import (
    CAUSAL,
    CHAT,
    PAIRS,
    QUESTIONS,
    TRANSLATION,
    WITH_ENCODER,
    made,
    stirred,
    talk,
)

HOW = Generation(max_new_tokens=8)
WAYS = ("lora", "{kind: adapter, activation: gelu}", "{kind: prefix, num_virtual_tokens: 4}", "ia3",
        "{kind: prompt, num_virtual_tokens: 4}",
        "{kind: p_tuning, num_virtual_tokens: 4}")  # fmt: skip


def prompts_of(recipe: Any, model: Any, rows: Any = QUESTIONS) -> list[list[int]]:
    return recipe.task.prompts(rows, model.tokenizer, 64)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_text_is_the_same_alone_and_in_a_batch_with_padding_before_it(name: str) -> None:
    recipe = talk(name, CHAT)
    model = made(recipe, bare=True)
    prompts = prompts_of(recipe, model)
    assert len({len(prompt) for prompt in prompts}) > 1
    together = generate(model, prompts, HOW, [])
    assert together == [generate(model, [prompt], HOW, [])[0] for prompt in prompts]
    if name != "tiny-gemma3":  # whose random weights only ever repeat a token
        assert len(set(together)) > 1


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_texts_are_the_models_most_probable_tokens_step_by_step(name: str) -> None:
    recipe = talk(name, CHAT)
    model, plain = made(recipe, bare=True), made(talk(name, CHAT, "training.packing=off"), True)
    prompt = prompts_of(recipe, model)[0]
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(plain.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    ends = model.tokenizer.eos_token_id
    assert ends not in ids[len(prompt) :], "a toy that ends at once proves nothing"
    expected = model.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert generate(model, [prompt], Generation(max_new_tokens=5), []) == [expected]


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_sources_of_several_lengths_are_read_as_alone(name: str) -> None:
    recipe = talk(name, TRANSLATION)
    model = made(recipe, bare=True)
    prompts = prompts_of(recipe, model, PAIRS)
    for how in (HOW, Generation(max_new_tokens=6, num_beams=3)):
        together = generate(model, prompts, how, recipe.task.stop_ids(model.tokenizer))
        alone = [generate(model, [p], how, recipe.task.stop_ids(model.tokenizer)) for p in prompts]
        assert together == [text for (text,) in alone]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_every_strategys_text_is_its_own_most_probable_one(way: str, name: str) -> None:
    recipe = talk(name, CHAT, f"strategy={way}", "training.packing=off")
    model = stirred(made(recipe))
    examples: list[int] = prompts_of(recipe, model)[0]
    found = generate(model, [examples], Generation(max_new_tokens=4), [])
    ids = list(examples)
    with torch.no_grad():
        for _ in range(4):
            example = {"input_ids": [*ids, 5], "labels": [-100] * len(ids) + [5]}
            batch = model.batcher([example])
            batch.pop("labels")
            ids.append(int(model.module(**batch).logits[0].argmax()))
    expected = model.tokenizer.decode(ids[len(examples) :], skip_special_tokens=True)
    assert found == [expected.strip()]
    assert (
        generate(model, [examples, examples[-5:]], Generation(max_new_tokens=4), [])[0] == found[0]
    )


@pytest.mark.parametrize(
    "way", ["{kind: prompt, num_virtual_tokens: 4}", "{kind: p_tuning, num_virtual_tokens: 4}"]
)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_behind_virtual_tokens_a_text_is_the_same_alone_and_in_a_batch(way: str, name: str) -> None:
    recipe = talk(name, CHAT, f"strategy={way}", "training.packing=off")
    model = stirred(made(recipe))
    prompts = [*prompts_of(recipe, model), *prompts_of(recipe, model)[:1]]
    together = generate(model, prompts, HOW, [])
    assert together == [generate(model, [prompt], HOW, [])[0] for prompt in prompts]
    assert len(set(together)) > 1


def test_an_answers_tokens_go_up_to_the_one_that_ends_it() -> None:
    recipe = talk("tiny-llama", CHAT)
    model = made(recipe, bare=True)
    prompts = prompts_of(recipe, model)
    whole = generate_tokens(model, prompts, HOW, [])
    assert all(len(ids) == HOW.max_new_tokens for ids in whole)
    end = next(i for i in whole[0][2:-1] if i not in whole[0][:2])
    found = generate_tokens(model, prompts, HOW, [end])
    assert found[0] == whole[0][: whole[0].index(end) + 1]
    assert all(end not in ids[:-1] for ids in found) and found[0][-1] == end


def test_the_model_is_afterwards_as_it_was() -> None:
    recipe = talk("tiny-llama", CHAT)
    model = made(recipe)
    base, own = unwrap_model(model.module), unwrap_model(model.module).generation_config
    model.module.train()
    state = torch.random.get_rng_state()
    generate(model, prompts_of(recipe, model), Generation(max_new_tokens=3, temperature=1.0), [])
    assert base.config._attn_implementation == PACKED and base.generation_config is own
    assert model.module.training and torch.equal(torch.random.get_rng_state(), state)


def test_draws_are_the_seeds() -> None:
    recipe = talk("tiny-llama", CHAT)
    model = made(recipe, bare=True)
    prompts = prompts_of(recipe, model)
    how = Generation(max_new_tokens=8, temperature=1.0, seed=3)
    assert generate(model, prompts, how, []) == generate(model, prompts, how, [])
    other = how.model_copy(update={"seed": 4})
    assert generate(model, prompts, how, []) != generate(model, prompts, other, [])


def test_texts_end_at_tokens_and_texts_that_say_so() -> None:
    recipe = talk("tiny-llama", CHAT)
    model = made(recipe, bare=True)
    (prompt, *_) = prompts_of(recipe, model)
    (whole,) = generate(model, [prompt], HOW, [])
    words = whole.split()
    third = model.tokenizer.convert_tokens_to_ids(words[2])
    first = words.index(words[2])
    assert generate(model, [prompt], HOW, [third])[0].split()[:first] == words[:first]
    assert len(generate(model, [prompt], HOW, [third])[0].split()) <= first + 1
    stopped = generate(model, [prompt], HOW.model_copy(update={"stop": [words[2]]}), [])
    assert stopped[0].split() == words[:first]


def test_a_text_is_cut_before_the_first_stop() -> None:
    assert cut_at_stop(" a b STOP c END", ["END", "STOP"]) == " a b "
    assert cut_at_stop(" a b ", []) == " a b "


def test_rows_are_drawn_by_the_seed_and_a_larger_draw_holds_a_smaller_one() -> None:
    few, many = sample_rows(50, Generation(rows=5)), sample_rows(50, Generation(rows=20))
    assert set(few) < set(many) and few == sorted(few) == sample_rows(50, Generation(rows=5))
    assert sample_rows(50, Generation(rows=5, seed=1)) != few
    assert sample_rows(3, Generation(rows=5)) == [0, 1, 2]
