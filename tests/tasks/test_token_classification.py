"""Tagging: words and their pieces, tags in any scheme, windows, and scores as in libraries."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RecipeError
from peftkit.evaluation.prediction import merge_batches, predict_batches
from peftkit.hub.resolve import find_model
from peftkit.hub.toy_models import TINY
from peftkit.loading.model import load_model, load_tokenizer
from peftkit.metrics.counts import tally_scores
from peftkit.preprocessing.batching import longest_first
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Predictions, Task
from peftkit.tasks.token_classification.rows import sentence_of
from peftkit.tasks.token_classification.schemes import tag_names, to_iob2
from peftkit.tasks.token_classification.task import TokenClassification
from support.toy_models import toy

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
NAMES = tag_names(("LOC", "PER"))
HAVING = [name for name in TINY if name not in ("tiny-gemma3", "tiny-bart", "tiny-marian")]
"""Models for whose architecture transformers has a token classifier."""


class Rows(dict[str, list[Any]]):
    """A data set's length is its rows'."""

    def __len__(self) -> int:
        return len(self["tokens"])


def rows(*sentences: tuple[Any, Any]) -> Rows:
    names = [f"f:{number}" for number in range(len(sentences))]
    words, tags = zip(*sentences, strict=True) if sentences else ((), ())
    return Rows(row=names, tokens=list(words), tags=list(tags))


def names_of(
    task: TokenClassification, names: tuple[str, ...] | None = None, **splits: Rows
) -> Any:
    given = {"train": rows(), "validation": rows(), "test": rows(), **splits}
    return task.label_names(SimpleNamespace(**given, names=names))  # type: ignore[arg-type]


GOOD = (["Ann", "saw", "Rome"], ["B-PER", "O", "B-LOC"])


def refused(task: TokenClassification, *sentences: tuple[Any, Any], **splits: Rows) -> str:
    with pytest.raises(DataError) as caught:
        names_of(task, train=rows(*sentences), **splits)
    return str(caught.value)


def test_the_tags_are_those_of_iob2_for_all_types_in_train() -> None:
    assert names_of(TokenClassification(), train=rows(GOOD)) == (
        "O",
        "B-LOC",
        "I-LOC",
        "B-PER",
        "I-PER",
    )
    bilou = rows((["a", "b", "c"], ["U-PER", "B-X", "L-X"]))
    assert names_of(TokenClassification(), train=bilou) == ("O", "B-PER", "I-PER", "B-X", "I-X")
    declared = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert names_of(TokenClassification(), declared, train=rows(GOOD)) == declared
    plain = rows((["a", "b"], ["NN", "DT"]))
    assert names_of(TokenClassification(scheme="none"), train=plain) == ("DT", "NN")


def test_words_and_tags_that_do_not_pair_are_counted_and_named() -> None:
    uneven, untagged = (["a", "b"], ["O"]), (["a", "b"], ["O", None])
    said = refused(TokenClassification(), GOOD, uneven, uneven, untagged, ([" "], ["O"]))
    expected = "the numbers of words and tags differ in 2 rows (f:1 (2 words, 1 tags), f:2"
    assert expected in said
    assert "a word has no tag in 1 row (f:3 (word 2))" in said
    assert "column of 'tokens': a word is empty in 1 row (f:4)" in said


def test_tags_of_no_scheme_are_told_with_the_way_out() -> None:
    said = refused(TokenClassification(), (["a", "b"], ["NN", "VB"]))
    assert "2 tags are of no scheme ('NN', 'VB')" in said and "task.scheme=none" in said


def test_an_inside_tag_that_begins_an_entity_hints_at_iob1() -> None:
    begun = (["a", "b"], ["O", "I-PER"])
    said = refused(TokenClassification(scheme="iob2"), GOOD, begun)
    assert "ill-formed in the scheme iob2 in 1 row (f:1: 'I-PER' behind 'O')" in said
    assert "task.scheme=iob1" in said
    assert "task.scheme=iob2" in refused(TokenClassification(scheme="iob1"), GOOD)
    assert "the end behind 'B-PER'" in refused(
        TokenClassification(scheme="bilou"), (["a"], ["B-PER"])
    )
    assert names_of(TokenClassification(), train=rows(begun, begun)) == ("O", "B-PER", "I-PER")


def test_types_that_train_never_has_are_refused_unless_they_are_declared() -> None:
    test = rows((["x"], ["B-ORG"]))
    said = refused(TokenClassification(), GOOD, test=test)
    assert "test, column of 'tags': the type 'ORG' is in 1 row (f:0), and train never has" in said
    declared = tag_names(("LOC", "ORG", "PER"))
    assert names_of(TokenClassification(), declared, train=rows(GOOD), test=test) == declared
    plain = rows((["a", "b"], ["NN", "DT"]))
    assert "the tag 'B-ORG'" in refused(
        TokenClassification(scheme="none"), (["a", "b"], ["N", "D"]), test=test
    )
    assert names_of(TokenClassification(scheme="none"), ("DT", "NN", "X"), train=plain) == (
        "DT",
        "NN",
        "X",
    )


def test_a_single_tag_cannot_be_learned() -> None:
    assert "all words have the tag 'O'" in refused(TokenClassification(), (["a", "b"], ["O", "O"]))


def encode(words: Sequence[Any], max_length: int = 32, task: Any = None, **more: Any) -> Any:
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    return (task or TokenClassification()).encode(
        {"tokens": words, **more}, tokenizer, NAMES, max_length
    )


def test_a_words_label_is_at_its_first_piece() -> None:
    found = encode([["rain", "zo", "dog"]], tags=[["B-LOC", "I-LOC", "O"]])
    assert len(found["input_ids"][0]) == 6  # [CLS] rain z ##o dog [SEP]
    assert found["labels"] == [[IGNORE_INDEX, 1, 2, IGNORE_INDEX, 0, IGNORE_INDEX]]
    assert found["of"] == [0] and found["truncated"] == [False]
    assert encode([["rain", "zo"]])["labels"] == [
        [IGNORE_INDEX, -1, -1, IGNORE_INDEX, IGNORE_INDEX]
    ]


def test_other_schemes_are_learned_as_iob2() -> None:
    words = [["rain", "storm", "dog"]]
    iob2 = encode(words, tags=[["B-LOC", "I-LOC", "B-LOC"]])["labels"]
    assert encode(words, tags=[["I-LOC", "I-LOC", "B-LOC"]])["labels"] == iob2
    assert encode(words, tags=[["B-LOC", "L-LOC", "U-LOC"]])["labels"] == iob2
    assert encode(["rain storm dog"], tags=["B-LOC I-LOC B-LOC"])["labels"] == iob2


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["rain", "zoo", "a", "\x96"]), min_size=1, max_size=60))
def test_no_word_of_a_long_text_is_lost_or_answered_twice(words: list[str]) -> None:
    tags = [NAMES[1 + place % 2 * 2] for place in range(len(words))]
    found = encode([["dog"], words], max_length=12, tags=[["O"], tags])
    assert all(len(ids) <= 12 for ids in found["input_ids"])
    labels = [
        label
        for own, row in zip(found["labels"], found["of"], strict=True)
        for label in own
        if row == 1 and label != IGNORE_INDEX
    ]
    assert [NAMES[label] for label in labels] == to_iob2(tags)
    assert found["of"] == sorted(found["of"])


def test_windows_that_do_not_move_on_are_refused() -> None:
    with pytest.raises(DataError, match=r"task.stride: is 10, and a window has 10 tokens - use 9"):
        encode([["rain"] * 30], max_length=12, task=TokenClassification(stride=10))
    assert (
        len(encode([["rain"] * 30], max_length=12, task=TokenClassification(stride=0))["of"]) == 3
    )


def scored(
    task: TokenClassification, gold: list[list[str]], said: list[list[str]], names: Any
) -> Any:
    given = EvalSplit(rows(*((tags, tags) for tags in gold)), None, names)
    counts = task.counts([{"tags": tags} for tags in said], given)
    return tally_scores(counts, lambda sums: task.totals(sums, names), task.headline, resamples=20)


sentences = st.lists(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy")
@settings(deadline=None)
@given(sentences)
def test_scores_of_entities_are_seqevals(pairs: list[list[tuple[str, str]]]) -> None:
    gold = [to_iob2([right for right, _ in row]) for row in pairs]
    said = [[tag for _, tag in row] for row in pairs]  # ill-formed too
    found = scored(TokenClassification(), gold, said, NAMES)
    strict: Any = {"mode": "strict", "scheme": IOB2}
    for name in ("precision", "recall", "f1"):
        library = getattr(seqeval.metrics, f"{name}_score")
        assert found[name].value == pytest.approx(library(gold, said, **strict))
    assert found["accuracy"].value == pytest.approx(seqeval.metrics.accuracy_score(gold, said))
    report = seqeval.metrics.classification_report(gold, said, output_dict=True, **strict)
    mean = report["macro avg"]["f1-score"]  # not a number where no entity is said or there
    assert found["macro_f1"].value == (None if np.isnan(mean) else pytest.approx(mean))
    for kind in ("LOC", "PER"):
        of_kind = report.get(kind, {"precision": None, "recall": None, "f1-score": None})
        for name in ("precision", "recall", "f1"):
            expected = of_kind["f1-score" if name == "f1" else name]
            assert found[f"{name}[{kind}]"].value == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)))
def test_scores_of_plain_tags_are_scikit_learns(pairs: list[list[tuple[str, str]]]) -> None:
    kept = [*pairs, [("a", "b")]]
    gold, said = ([[pair[side] for pair in row] for row in kept] for side in (0, 1))
    found = scored(TokenClassification(scheme="none"), gold, said, ("a", "b", "c", "d"))
    flat = [[tag for row in side for tag in row] for side in (gold, said)]
    assert found["accuracy"].value == pytest.approx(accuracy_score(*flat))
    assert found["macro_f1"].value == pytest.approx(f1_score(*flat, average="macro"))
    assert found["f1[d]"].value is None
    assert next(iter(found)) == "accuracy"


def test_baselines_are_all_outside_and_the_words_most_frequent_tags() -> None:
    train = rows(GOOD, (["Ann", "Rome"], ["I-PER", "B-LOC"]), (["Ann"], ["B-PER"]))
    given = EvalSplit(
        rows((["Rome", "Ann", "x"], ["B-LOC", "B-PER", "O"])), None, NAMES, train=train
    )
    found = TokenClassification().baseline_answers(given)
    assert {name: [answer["tags"] for answer in said] for name, said in found.items()} == {
        "all_O": [["O", "O", "O"]],
        "most_frequent_tag": [["B-LOC", "B-PER", "O"]],
    }


def test_answers_are_well_formed_and_say_where_entities_stand() -> None:
    text = "Ann Lee's (old) dog, 1996-08-22, U.N."
    words = ["Ann", "Lee", "'s", "(", "old", ")", "dog", ",", "1996-08-22", ",", "U.N", "."]
    assert sentence_of(text).words == words
    said = np.full((len(words), len(NAMES)), 0.01, dtype=np.float32)
    said[:, 0] = 0.96
    said[0] = [0.1, 0.0, 0.0, 0.3, 0.6]  # I-PER is likeliest, but cannot begin
    said[1] = [0.1, 0.0, 0.0, 0.1, 0.8]
    parts = [said[:2], said[2:]]  # two windows
    given = EvalSplit({"tokens": [text]}, {"of": [0, 0]}, NAMES)
    (answer,) = TokenClassification().answers(Predictions([], parts, None), given)
    assert answer["tags"][:3] == ["B-PER", "I-PER", "O"] and answer["words"] == words
    (entity,) = answer["entities"]
    assert entity["probability"] == pytest.approx(0.3)
    assert {k: entity[k] for k in ("type", "start", "end", "text")} == {
        "type": "PER",
        "start": 0,
        "end": 7,
        "text": "Ann Lee",
    }
    (greedy,) = TokenClassification(decoding="greedy").answers(Predictions([], parts, None), given)
    assert greedy["tags"][:3] == ["I-PER", "I-PER", "O"] and greedy["entities"] == []


def made(model: str, *overrides: str) -> tuple[Recipe, Any]:
    recipe = toy(
        model, "task=token_classification", "strategy=full", "data.max_length=12", *overrides
    )
    source = find_model(model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    return recipe, load_model(recipe, source, tokenizer, NAMES, "fp32")


LONG = [["rain", "storm"] * 9, ["dog", "zoo"], ["whale"] * 5]


def answered(recipe: Recipe, assembled: Any, tokens: Any, most: int = 4096) -> Any:
    task = recipe.task
    encoded = task.encode({"tokens": tokens}, assembled.tokenizer, NAMES, 12)
    examples = [dict(zip(encoded, e, strict=True)) for e in zip(*encoded.values(), strict=True)]
    batches = longest_first([len(e["input_ids"]) for e in examples], most)
    found = merge_batches(predict_batches(assembled, task, examples, batches), encoded["labels"])
    return found.outputs, task.answers(found, EvalSplit({"tokens": tokens}, encoded, NAMES))


@pytest.mark.parametrize("model", HAVING)
def test_every_model_answers_each_word_alike_alone_packed_and_padded(model: str) -> None:
    recipe, assembled = made(model)
    outputs, answers = answered(recipe, assembled, LONG)
    assert [len(answer["tags"]) for answer in answers] == [18, 2, 5]
    alone, _ = answered(recipe, assembled, LONG, most=1)
    padded_recipe, padded = made(model, "training.packing=off")
    apart, _ = answered(padded_recipe, padded, LONG)
    for one, other, third in zip(outputs, alone, apart, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one, third, atol=1e-5)


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-gpt2"])
def test_the_loss_is_that_of_the_models_own_code_summed(model: str) -> None:
    recipe, assembled = made(model, "training.packing=off")
    tags = [["B-LOC", "I-LOC"] * 4, ["O", "B-PER"]]
    encoded = recipe.task.encode(
        {"tokens": [["rain", "dog"] * 4, ["a", "zoo"]], "tags": tags},
        assembled.tokenizer,
        NAMES,
        12,
    )
    examples = [dict(zip(encoded, e, strict=True)) for e in zip(*encoded.values(), strict=True)]
    batch = assembled.batcher(examples)
    labels = batch.pop("labels")
    found = recipe.task.loss(recipe.task.logits(assembled.module(**batch)), labels, 0.0)
    own = [
        assembled.module(
            input_ids=torch.tensor([e["input_ids"]]), labels=torch.tensor([e["labels"]])
        ).loss
        * sum(label >= 0 for label in e["labels"])
        for e in examples
    ]
    assert found.item() == pytest.approx(sum(own).item(), rel=1e-5)  # type: ignore[union-attr]
    assert recipe.task.known(labels) == 10


@pytest.mark.parametrize("model", ["tiny-gemma3", "tiny-bart"])
def test_architectures_without_a_token_classifier_are_refused(model: str) -> None:
    with pytest.raises(RecipeError, match=r"has no head for 'task: token_classification'"):
        made(model)


def test_nicknames_say_what_is_tagged() -> None:
    assert Task.parse("ner", "task") == TokenClassification()
    assert Task.parse("pos", "task") == TokenClassification(scheme="none")


@needs_shared
def test_the_baselines_on_conll2003_are_the_known_ones() -> None:
    recipe = Recipe.load("lora_conll2003", f"data.path={SHARED / 'conll2003'}")
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    names = recipe.task.label_names(splits)
    assert names == tag_names(("PER", "ORG", "LOC", "MISC"))
    given = EvalSplit(splits.test, None, names, train=splits.train, resamples=0)
    outside = recipe.task.baseline_answers(given)["all_O"]
    counts = recipe.task.counts(outside, given)
    found = tally_scores(counts, lambda sums: recipe.task.totals(sums, names), "f1", resamples=0)
    assert found["f1"].value == 0 and found["accuracy"].value == pytest.approx(0.8253, abs=5e-5)
    there = dict(zip(("PER", "ORG", "LOC", "MISC"), counts.sum(axis=0)[8:12], strict=True))
    assert there == {"LOC": 1668, "MISC": 702, "ORG": 1661, "PER": 1617}
