"""Untrained: classes that a base says without training, by its embeddings and in words."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RecipeError
from peftkit.evaluation.baselines import cache
from peftkit.evaluation.baselines.cache import predict_untrained
from peftkit.evaluation.baselines.nearest_centroid import predict_by_embedding
from peftkit.evaluation.baselines.zero_shot import Likelihoods, log_likelihoods, to_probabilities
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.preprocessing.tokenization import encode
from peftkit.runtime.distributed import World
from peftkit.tasks.base import EvalSplit, Predictions
from peftkit.tasks.embedding_baseline import nearest_centroid
from peftkit.tasks.zero_shot import Prompts, ZeroShotSettings
from support.run_processes import tensors

ALONE = World(0, 1, 1, "fp32", "cpu", "none")
NAMES = ["sport", "food"]
QUIET = ("data.rows=80", "training.precision=fp32", "training.dropout=0")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny causal language model whose files say that they are one."""
    folder = tmp_path_factory.mktemp("speaker")
    location = find_model("tiny-llama").location
    torch.manual_seed(0)
    AutoModelForCausalLM.from_pretrained(location).save_pretrained(folder)
    AutoTokenizer.from_pretrained(location).save_pretrained(folder)
    return str(folder)


def material(model: str, *overrides: str) -> tuple[Recipe, Any, Any, EvalSplit]:
    """A recipe, its model's source and tokenizer, and the made-up data's test rows."""
    recipe = Recipe.load("lora_tiny", f"model={model}", *QUIET, *overrides)
    splits = recipe.splits(recipe.data.resolve())
    names = recipe.task.label_names(splits)
    source = find_model(recipe.model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    examples = encode(recipe, splits, tokenizer, source, names)
    return recipe, source, tokenizer, EvalSplit(splits.test, examples["test"], names, splits.train)


def said_by(model: str, *overrides: str) -> tuple[dict[str, Predictions], EvalSplit]:
    recipe, source, tokenizer, given = material(model, *overrides)
    content = recipe.task.model_dump_json()
    return predict_untrained(recipe, source, tokenizer, given, content, ALONE), given


def embedding(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    """The mean of a text's last hidden states, by plain transformers, of length 1."""
    with torch.no_grad():
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        state = model(**ids).last_hidden_state[0].mean(dim=0)
    return (state / state.norm()).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama", "tiny-deberta-v3"])
def test_the_nearest_centroid_is_that_of_embeddings_computed_one_by_one(model: str) -> None:
    recipe, source, tokenizer, given = material(model)
    found = np.stack(predict_by_embedding(recipe, recipe.task, source, tokenizer, given, ALONE))
    plain = AutoModel.from_pretrained(source.location).eval()
    train, test = (
        np.stack([embedding(plain, tokenizer, text) for text in rows["text"]])
        for rows in (given.train, given.rows)
    )
    labels = np.asarray([given.names.index(label) for label in given.train["label"]])
    fitted = NearestCentroid().fit(train, labels)
    assert found.argmax(axis=1).tolist() == fitted.predict(test).tolist()
    squares = ((test[:, None] - fitted.centroids_) ** 2).sum(axis=2)
    wanted = np.exp(-squares) / np.exp(-squares).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_class_that_no_row_is_shown_of_is_never_said() -> None:
    found = nearest_centroid(np.eye(2), np.asarray([2, 0]), np.asarray([[1.0, 0.1]]), 3)
    assert found[0, 1] == 0 and found[0, 2] > found[0, 0] > 0
    assert found.sum() == pytest.approx(1)


ANSWERS = [[7], [9], [7, 8], [7, 8, 5], [9, 8]]


def test_the_likelihood_of_an_answer_is_the_sum_over_its_tokens(speaker: str) -> None:
    recipe, source, tokenizer, _ = material(speaker)
    task = Likelihoods(kind="likelihoods", answers_ids=ANSWERS)
    base = cache.load_base(task, recipe, source, tokenizer, (), ALONE)
    prompts = [[2, 11, 12, 13], [2, 30], [2, *range(20, 60)]]
    found = log_likelihoods(base, task, prompts, ALONE)
    plain = AutoModelForCausalLM.from_pretrained(speaker).eval()
    for prompt, row in zip(prompts, found, strict=True):
        wanted = [plain_likelihood(plain, prompt, answer) for answer in ANSWERS]
        np.testing.assert_allclose(row, wanted, rtol=1e-4)


def plain_likelihood(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The log-probability of an answer, from the full logits of plain transformers."""
    with torch.no_grad():
        likely = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(dim=-1)
    return sum(float(likely[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def test_answers_that_differ_in_their_last_token_are_read_in_one_pass() -> None:
    read = Likelihoods(kind="likelihoods", answers_ids=ANSWERS).longest_answers()
    assert read == [[7, 8, 5], [9, 8]]
    assert len(Likelihoods(kind="likelihoods", answers_ids=[[3], [4], [5]]).longest_answers()) == 1


def test_what_is_asked_in_words_is_the_rows_text_and_the_labels_words(speaker: str) -> None:
    words = "{sport: goal, food: bread and soup}"
    template = "'{text}\nabout: {label}'"
    asks = f"{{template: {template}, label_words: {words}, calibrate: false, few_shot_examples: 0}}"
    found, given = said_by(speaker, f"task.zero_shot={asks}")
    assert list(found) == ["nearest centroid", "zero-shot"]
    tokenizer = load_tokenizer(speaker)
    plain = AutoModelForCausalLM.from_pretrained(speaker).eval()
    for text, row in zip(given.rows["text"], found["zero-shot"].outputs, strict=True):
        prompt = [tokenizer.bos_token_id, *ids_of(tokenizer, f"{text}\nabout:")]
        said = {"sport": "goal", "food": "bread and soup"}
        likely = np.asarray(
            [plain_likelihood(plain, prompt, ids_of(tokenizer, said[n])) for n in given.names]
        )
        shares = np.exp(likely) / np.exp(likely).sum()
        np.testing.assert_allclose(row, shares, rtol=1e-3, atol=1e-6)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_calibration_divides_by_what_is_said_without_content(speaker: str) -> None:
    said, nothing = np.log([[0.6, 0.4], [0.9, 0.1]]), np.log([0.8, 0.2])
    # 0.6 / 0.8 : 0.4 / 0.2 = 3 : 8, and 0.9 / 0.8 : 0.1 / 0.2 = 9 : 4
    np.testing.assert_allclose(
        to_probabilities(said, nothing), [[3 / 11, 8 / 11], [9 / 13, 4 / 13]]
    )
    asked = {}
    for calibrate in (True, False):
        found, given = said_by(
            speaker, f"task.zero_shot={{few_shot_examples: 0, calibrate: {calibrate}}}"
        )
        asked[calibrate] = np.stack(found["zero-shot"].outputs)
    plain = AutoModelForCausalLM.from_pretrained(speaker).eval()
    tokenizer = load_tokenizer(speaker)
    prompt = [tokenizer.bos_token_id, *ids_of(tokenizer, "N/A\nLabel:")]
    free = np.exp([plain_likelihood(plain, prompt, ids_of(tokenizer, n)) for n in given.names])
    wanted = asked[False] / free
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(asked[True], wanted, rtol=1e-3, atol=1e-6)
    assert np.abs(asked[True] - asked[False]).max() > 0.01


def test_answered_rows_are_of_train_alone_drawn_by_seed_the_classes_taking_turns(
    speaker: str,
) -> None:
    _, _, _, given = material(speaker)
    how = ZeroShotSettings(few_shot_examples=4)
    shots = cache.sample_examples(how, given)
    assert sorted(Counter(shot["label"] for shot in shots).values()) == [2, 2]
    assert {shot["row"] for shot in shots} <= set(given.train["row"])
    assert {shot["row"] for shot in shots}.isdisjoint(given.rows["row"])
    assert shots == cache.sample_examples(how, given)
    other = cache.sample_examples(ZeroShotSettings(few_shot_examples=4, seed=1), given)
    assert [shot["row"] for shot in other] != [shot["row"] for shot in shots]
    assert cache.sample_examples(ZeroShotSettings(few_shot_examples=2), given) == shots[:2]


def test_few_shot_prompts_hold_the_answered_rows_before_the_question(speaker: str) -> None:
    tokenizer = load_tokenizer(speaker)
    shots = [{"text": "the goal", "label": "sport"}, {"text": "soup {text}", "label": "food"}]
    prompts = Prompts(ZeroShotSettings(), ["sport", "food"], tokenizer, shots, False, 32, 128)
    said = "the goal\nLabel: sport\n\nsoup {text}\nLabel: food\n\na team\nLabel:"
    assert prompts.ids({"text": "a team"}) == [tokenizer.bos_token_id, *ids_of(tokenizer, said)]
    assert prompts.answers() == [ids_of(tokenizer, "sport"), ids_of(tokenizer, "food")]


def test_texts_are_cut_so_that_labels_and_answered_rows_fit(speaker: str) -> None:
    tokenizer = load_tokenizer(speaker)
    long = {"text": "goal " * 100, "text_pair": "soup " * 100, "label": "sport"}
    for positions in (60, 80, 128):
        prompts = Prompts(
            ZeroShotSettings(), ["sport", "food"], tokenizer, [long] * 2, True, 16, positions
        )
        ids = prompts.ids(long)
        assert len(ids) + 1 <= positions and prompts.shots
        end = ids_of(tokenizer, "\nLabel:")
        assert ids[-len(end) :] == end
        counts = [ids.count(*ids_of(tokenizer, word)) for word in ("goal", "soup")]
        assert min(counts) >= 12 and abs(counts[0] - counts[1]) <= 3
    assert len(prompts.shots) == 2 and counts[0] == 3 * 8, "16 tokens a row, half of them each"
    narrow = Prompts(ZeroShotSettings(), ["sport", "food"], tokenizer, [long] * 4, True, 16, 30)
    assert not narrow.shots and len(narrow.ids(long)) + 1 <= 30


def test_a_pairs_shorter_text_is_kept_whole(speaker: str) -> None:
    tokenizer = load_tokenizer(speaker)
    prompts = Prompts(ZeroShotSettings(), ["a", "b"], tokenizer, [], True, 10, 128)
    for short, other in (("text", "text_pair"), ("text_pair", "text")):
        ids = prompts.ids({short: "goal team", other: "soup " * 30})
        assert ids.count(*ids_of(tokenizer, "soup")) == 8
        assert ids_of(tokenizer, "goal team")[1] in ids


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("{template: 'so: {label}'}", r"task.zero_shot.template.*have \{text\} once"),
        ("{template: '{text} is {label}!'}", r"task.zero_shot.template.*should end in \{label\}"),
        ("{label_words: {sport: '', food: x}}", r"task.zero_shot.label_words.*should all be words"),
        ("{label_words: {sport: x, food: 'x '}}", r"task.zero_shot.label_words.*should differ"),
        (
            "{few_shot_examples: -1}",
            r"task.zero_shot.few_shot_examples.*greater than or equal to 0",
        ),
        ("{few_shot: 1}", r"task.zero_shot.few_shot.*did you mean 'few_shot_examples'"),
    ],
)
def test_a_prompting_that_cannot_be_is_refused(said: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        Recipe.load("lora_tiny", f"task.zero_shot={said}")


def test_a_prompting_that_does_not_fit_the_data_is_refused() -> None:
    said = "{label_words: {sport: goal}, template: '{text} {text_pair} {label}'}"
    with pytest.raises(DataError) as error:
        material("tiny-bert", f"task.zero_shot={said}")
    faults = {fault.where: fault.what for fault in error.value.faults}
    assert "should have words for" in faults["task.zero_shot.label_words"]
    assert "the rows have one text" in faults["task.zero_shot.template"]


def test_what_the_base_says_stands_in_the_record_and_changes_nothing_else(
    speaker: str, tmp_path: Path
) -> None:
    short = ("training.steps=3", "training.threads=1", "training.proof=run", "training.dropout=0.1")
    overrides = ("data.rows=80", f"model={speaker}", *short)
    records, trained = {}, {}
    for said in ("true", "false"):
        prompted = ("task.zero_shot={few_shot_examples: 4}",) if said == "true" else ()
        recipe = Recipe.load("lora_tiny", *overrides, f"task.untrained_baseline={said}", *prompted)
        records[said] = record = peftkit.train(recipe, tmp_path)
        run = tmp_path / record.folder_name
        trained[said] = (tensors(run / "artifact"), (run / "predictions.jsonl").read_text())
    ways = ["majority class", "nearest centroid", "zero-shot", "4-shot"]
    assert list(records["true"].baselines) == ways
    assert list(records["false"].baselines) == ["majority class"]
    assert records["true"].scores == records["false"].scores
    assert records["true"].baseline == records["true"].baselines["majority class"]
    assert trained["true"] == trained["false"]
    for scores in records["true"].baselines.values():
        assert scores["accuracy"].n == records["true"].rows["test"]


def test_the_base_is_not_asked_again_by_another_strategy(
    speaker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = said_by(speaker)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the base is loaded again")

    monkeypatch.setattr(cache, "load_base", never)
    monkeypatch.setattr(cache, "predict_by_embedding", never)
    again, _ = said_by(speaker, "strategy=full", "training.seed=3")
    for name, found in first.items():
        np.testing.assert_array_equal(np.stack(found.outputs), np.stack(again[name].outputs))


def test_a_run_keeps_the_name_it_had_before_the_base_was_asked() -> None:
    source = find_model("tiny-bert")
    plain = Recipe.load("lora_tiny")
    data = plain.data.resolve()
    asked, unasked, prompted = (
        Recipe.load("lora_tiny", f"task.{said}")
        for said in (
            "untrained_baseline=true",
            "untrained_baseline=false",
            "zero_shot={few_shot_examples: 2}",
        )
    )
    assert plain.digest(source, data) == asked.digest(source, data)
    assert len({each.digest(source, data) for each in (plain, unasked, prompted)}) == 3


def test_a_quantized_base_is_asked_as_it_is_trained(speaker: str) -> None:
    whole, _ = said_by(speaker)
    held, _ = said_by(speaker, "quantize=4bit")
    assert whole.keys() == held.keys()
    for name, found in whole.items():
        difference = np.abs(np.stack(found.outputs) - np.stack(held[name].outputs)).max()
        assert 0 < difference < 1
