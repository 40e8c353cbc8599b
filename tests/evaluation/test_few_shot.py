"""Shots: answered rows of train before a base's questions, in texts and in bits per byte."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.evaluation.baselines.few_shot import (
    FewShot,
    make_few_shot_task,
    predict_few_shot,
    prepend_examples,
)
from peftkit.evaluation.prediction import predict
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source
from peftkit.loading.model import meta_model
from peftkit.tasks.base import EvalSplit
from peftkit.text.conversations import Conversation
from support.behavior_matrix import WAYS
from support.conversations import QUESTIONS, made, talk
from support.task_rows import instructed, rendered, task_recipe
from support.toy_models import ALONE

TRAIN = {
    "question": ["bread", "a team", "cloud near wind", "the horse"],
    "answer": ["soup", "match", "the storm", "dog"],
}
LONG = {"question": ["goal " * 60, *TRAIN["question"][1:]], "answer": TRAIN["answer"]}


OF_OLD = "4e70faaf10ea93cf6f1b2a8a9dbffd404faf2a5a565d38de66db3bceda2592e6"
"""What a recipe was called when it could say nothing of shots."""


def material(
    settings: str = "few_shot_examples: 2",
    length: int = 64,
    train: Any = TRAIN,
    rows: Any = QUESTIONS,
) -> tuple[Recipe, Any, EvalSplit]:
    """A recipe, its bare base, and rows to be asked behind rows of train."""
    generate = f"{{{settings}, max_new_tokens: 4}}"
    task = f"{{kind: instruction_tuning, template: plain, generate: {generate}}}"
    recipe = talk("tiny-llama", task, f"data.max_length={length}")
    base = made(recipe, bare=True)
    found = recipe.task.encode(rows, base.tokenizer, (), length)
    sizes = {"length": [len(ids) for ids in found["input_ids"]]}
    examples = Dataset.from_dict({**found, **sizes})
    given = EvalSplit(Dataset.from_dict(rows), examples, (), Dataset.from_dict(train), resamples=0)
    return recipe, base, given


def shown(recipe: Recipe, base: Any, given: EvalSplit) -> FewShot:
    task: Any = recipe.task
    return make_few_shot_task(task, task.generate, given, base.tokenizer, recipe.data.max_length)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def turns(shots: list[Any]) -> str:
    """What the plain template makes of answered rows, written by hand."""
    pairs = [(question["content"], answer["content"]) for (question, answer), _ in shots]
    return "[CLS]" + "".join(f"Q: {q}\nA: {a}[SEP]\n\n" for q, a in pairs)


def test_answered_rows_of_train_are_earlier_turns_drawn_by_seed() -> None:
    recipe, base, given = material()
    task = shown(recipe, base, given)
    pairs = list(zip(TRAIN["question"], TRAIN["answer"], strict=True))
    said = [(question["content"], answer["content"]) for (question, answer), _ in task.shots]
    assert len(said) == 2 == len(set(said)) and set(said) <= set(pairs)
    assert shown(recipe, base, given).shots == task.shots
    others = [shown(*material(f"few_shot_examples: 2, seed: {seed}")).shots for seed in (1, 2, 3)]
    assert any(other != task.shots for other in others)
    asked = [f"{turns(task.shots)}Q: {question}\nA:" for question in QUESTIONS["question"]]
    wanted = [ids_of(base.tokenizer, text) for text in asked]
    assert task.prompts(QUESTIONS, base.tokenizer, 128) == wanted


def test_a_system_prompt_stays_in_front_and_is_said_once() -> None:
    system = {"role": "system", "content": "be brief"}
    shot = [system, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = [system, {"role": "user", "content": "c"}]
    tools = [{"name": "look"}, {"name": "find"}]
    shots = [Conversation(shot, tools[:1]), Conversation(shot, tools)]
    whole = prepend_examples(shots, Conversation(own))
    assert [m["content"] for m in whole.messages] == ["be brief", *"ababc"]
    assert (
        whole.tools == tools
        and prepend_examples([Conversation(shot)], Conversation(own)).tools is None
    )


def test_nats_are_those_of_the_own_answer_behind_the_others(tmp_path: Path) -> None:
    recipe, base, given = material()
    found = predict_few_shot(recipe, base, given, ALONE)
    assert found is not None and found[0] == "2-shot"
    base.module.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    before = turns(shown(recipe, base, given).shots)
    rows = zip(QUESTIONS["question"], QUESTIONS["answer"], found[1].outputs, strict=True)
    total = count = 0.0
    for question, answer, (mean, number) in rows:
        prompt = ids_of(base.tokenizer, f"{before}Q: {question}\nA:")
        said = ids_of(base.tokenizer, f" {answer}[SEP]")
        with torch.no_grad():
            likely = plain(torch.tensor([[*prompt, *said]])).logits[0].log_softmax(dim=-1)
        nats = -sum(float(likely[len(prompt) - 1 + i, token]) for i, token in enumerate(said))
        assert number == len(said) and mean * number == pytest.approx(nats, rel=1e-4)
        total, count = total + nats, count + number
    assert found[1].loss == pytest.approx(total / count, rel=1e-4)
    assert [text is not None for text in found[1].texts] == [True] * 4
    scored = recipe.task.score(found[1], given).scores
    size = sum(len(f" {answer}") for answer in QUESTIONS["answer"])
    assert scored["bits_per_byte"].value == pytest.approx(total / math.log(2) / size, rel=1e-3)


def test_an_answer_that_is_cut_without_shots_is_cut_as_much_behind_them() -> None:
    recipe, base, given = material(length=14)
    assert any(given.examples["truncated"]) and not all(given.examples["truncated"])
    alone = predict(base, recipe.task, given.examples, ALONE)
    found = predict_few_shot(recipe, base, given, ALONE)
    assert found is not None
    tokens = [[int(number) for _, number in each.outputs] for each in (alone, found[1])]
    assert tokens[0] == tokens[1]


def test_the_first_shots_are_dropped_where_there_is_no_room_and_a_note_says_so() -> None:
    recipe, base, given = material("few_shot_examples: 4", length=60, train=LONG)
    task = shown(recipe, base, given)
    sizes = ["goal goal" in shot.messages[0]["content"] for shot in task.shots]
    assert sizes.count(True) == 1
    (short,) = task.prompts({"question": ["bread"], "answer": ["a"]}, base.tokenizer, 70)
    kept = task.shots[sizes.index(True) + 1 :]
    assert short == ids_of(base.tokenizer, f"{turns(kept)}Q: bread\nA:")
    rows = {"question": ["soup", "goal " * 40], "answer": ["a", "b"]}
    recipe, base, given = material("few_shot_examples: 4", length=60, train=LONG, rows=rows)
    fewer = predict_few_shot(recipe, base, given, ALONE)
    assert fewer is not None and fewer[0] == "4-shot"
    whole = [f"{turns(task.shots[i:])}Q: {rows['question'][1]}\nA: b[SEP]" for i in range(5)]
    # the tiny model reads 130 tokens
    dropped = [len(ids_of(base.tokenizer, text)) <= 130 for text in whole].index(True)
    assert dropped > 0
    said = f"1 of 2 rows have room for fewer ({4 - dropped}.0 on average)"
    assert fewer[1].notes == (f"4-shot: {said}; the first ones are dropped",)


def test_none_are_shown_where_none_are_asked_for() -> None:
    recipe, base, given = material("rows: 2")
    assert predict_few_shot(recipe, base, given, ALONE) is None


@pytest.mark.parametrize("kind", ["translation", "instruction_tuning"])
def test_the_record_has_what_the_base_says_behind_answered_rows(kind: str, tmp_path: Path) -> None:
    make = rendered if kind == "translation" else instructed
    records = []
    for shots in (3, None):
        generate = {
            "rows": 4,
            "max_new_tokens": 6,
            **({"few_shot_examples": shots} if shots else {}),
        }
        task = {"kind": kind, "template": "plain", "generate": generate}
        more = {"target_length": 24} if kind == "translation" else {}
        recipe = task_recipe({**task, **more}, make, "tiny-gpt2", WAYS["lora"], "none").but(
            training__steps=2, training__threads=1, training__proof="run"
        )
        records.append(peftkit.train(recipe, tmp_path))
    asked, plain = records
    assert set(asked.baselines) - set(plain.baselines) == {"3-shot"}
    untuned, shown = asked.baselines["untrained"], asked.baselines["3-shot"]
    assert untuned.keys() == shown.keys() and asked.headline in shown
    assert shown["bits_per_byte"].value != untuned["bits_per_byte"].value
    assert asked.scores == plain.scores
    noted = any(note.startswith("3-shot: ") for note in asked.notes)
    assert noted == (kind == "translation"), "whose rows leave no room here"


def test_a_run_keeps_the_name_it_had_before_there_were_shots() -> None:
    source = Source(requested="m", used="m", origin="hub", location="m", identity="sha256:0")
    plain = talk("tiny-llama", "{kind: instruction_tuning, template: plain, generate: {rows: 3}}")
    shown = plain.but(task__generate__few_shot_examples=2)
    assert plain.digest(source, source) == OF_OLD
    assert shown.digest(source, source) != OF_OLD


def test_tasks_without_questions_and_models_with_an_encoder_take_no_shots() -> None:
    with pytest.raises(RecipeError, match=r"task.generate.*texts answer no questions"):
        talk("tiny-llama", "{kind: text_generation, generate: {few_shot_examples: 2}}")
    recipe = talk("tiny-t5", "{kind: translation, generate: {few_shot_examples: 2}}")
    with pytest.raises(RecipeError, match=r"task.generate.few_shot_examples: t5 has an encoder"):
        meta_model(recipe, find_model("tiny-t5").location, ())
