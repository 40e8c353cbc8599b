"""Relations: marks and offsets, markers that are tokens, what the head reads, and the scores."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RecipeError
from peftkit.evaluation.prediction import merge_batches, predict_batches
from peftkit.hub.resolve import find_model
from peftkit.hub.toy_models import TINY
from peftkit.loading.model import load_model, load_tokenizer
from peftkit.metrics.counts import tally_scores
from peftkit.models.layouts import ARCHITECTURES
from peftkit.preprocessing.batching import longest_first
from peftkit.preprocessing.tokenization import encode as encode_all
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit
from peftkit.tasks.relation_extraction.entity_markers import Marked, MarkerError, marked
from peftkit.tasks.relation_extraction.task import RelationExtraction
from support.task_rows import related, task_recipe
from support.toy_models import toy

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
NAMES = ("Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)", "Part(e2,e1)", "Other")
FIRST = [n for n, (kind, _) in TINY.items() if ARCHITECTURES[kind].reads == "first"]
TEXT = "the <e1>dog</e1> was near a <e2>horse</e2> today"


class Rows(dict[str, list[Any]]):
    """A data set's length is its rows'."""

    def __len__(self) -> int:
        return len(self["text"])


def rows(labels: list[str], texts: list[str] | None = None, **more: list[Any]) -> Rows:
    names = [f"f:{number}" for number in range(len(labels))]
    return Rows(row=names, text=texts or [TEXT] * len(labels), label=labels, **more)


def names_of(task: RelationExtraction, names: tuple[str, ...] | None = None, **splits: Rows) -> Any:
    given = {"train": rows([]), "validation": rows([]), "test": rows([]), **splits}
    return task.label_names(SimpleNamespace(**given, names=names))  # type: ignore[arg-type]


def test_marks_become_places_in_the_text_without_them() -> None:
    found = marked(TEXT)
    assert found == Marked("the dog was near a horse today", (4, 7), (19, 24))
    turned = marked("a <e2>horse</e2><e1> é</e1>")
    assert (turned.text[slice(*turned.head)], turned.text[slice(*turned.tail)]) == (" é", "horse")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a <e1>dog</e1> b", "there is no <e2>"),
        ("a <e1>dog b <e2>c</e2>", "there is no </e1>"),
        ("<e1>a</e1> <e1>b</e1> <e2>c</e2>", "there are several <e1>"),
        ("<e1>a <e2>b</e2></e1>", "markers are nested"),
        ("<e1>a <e2>b</e1> c</e2>", "markers are nested"),
        ("</e1>a<e1> <e2>b</e2>", "a marker ends before it begins"),
        ("<e1> </e1> <e2>b</e2>", "a marker encloses nothing"),
    ],
)
def test_marks_that_say_no_two_parts_are_refused(text: str, why: str) -> None:
    with pytest.raises(MarkerError, match=why):
        marked(text)


def test_offsets_come_in_three_forms() -> None:
    expected = Marked("the dog", (0, 3), (4, 7))
    assert marked("the dog", [0, 3], [4, 7]) == expected
    assert marked("the dog", "0:3", "4:7") == expected
    assert (
        marked("the dog", {"start": 0, "end": 3}, {"start": 4, "end": 7, "text": "dog"}) == expected
    )


@pytest.mark.parametrize(
    ("head", "tail", "why"),
    [
        ([0, 3], None, "only one of head and tail"),
        ([0, 3], [4, 8], "tail is outside its text"),
        ([3, 3], [4, 7], "head is outside its text, or ends before"),
        ([-1, 3], [4, 7], "head is outside"),
        ([3, 4], [4, 7], "head is only white space"),
        ([0, 5], [4, 7], "head and tail overlap"),
        ([0], [4, 7], "head is no place in the text"),
        ("dog", [4, 7], "head is no place in the text"),
        ([0.0, 3.0], [4, 7], "head is no place in the text"),
        ({"start": 0, "end": 3, "text": "dog"}, [4, 7], "the text of head is not"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(head: Any, tail: Any, why: str) -> None:
    with pytest.raises(MarkerError, match=why):
        marked("the dog", head, tail)


def test_marks_and_offsets_together_are_refused() -> None:
    with pytest.raises(MarkerError, match="both marks in the text and offsets"):
        marked(TEXT, [0, 3], [4, 7])


def test_rows_without_two_parts_are_counted_by_the_reason() -> None:
    texts = [TEXT, "no marks", "none here", "<e1>a</e1><e1>b</e1><e2>c</e2>"]
    with pytest.raises(DataError) as caught:
        names_of(RelationExtraction(), train=rows(["Other", *NAMES[:3]], texts))
    said = str(caught.value)
    assert "train, 2 rows (f:1, f:2): there is no <e1> - mark both parts" in said
    assert "train, 1 row (f:3): there are several <e1>" in said


def test_labels_are_those_of_the_data_or_of_train() -> None:
    train = rows(["Other", "Part(e2,e1)", "Part(e1,e2)"])
    assert names_of(RelationExtraction(), train=train) == ("Other", "Part(e1,e2)", "Part(e2,e1)")
    assert names_of(RelationExtraction(directed=False), train=train) == ("Other", "Part")
    assert names_of(RelationExtraction(), NAMES, train=train, test=rows(["Cause(e1,e2)"])) == NAMES
    with pytest.raises(DataError, match=r"test, .*: 1 rows have the label 'X', which train never"):
        names_of(RelationExtraction(), train=train, test=rows(["X"]))
    with pytest.raises(DataError, match="all rows have the label 'Other' - two or more"):
        names_of(RelationExtraction(), train=rows(["Other"]))


def test_the_label_of_no_relation_must_be_there() -> None:
    train = rows(["none", "Part(e1,e2)"])
    with pytest.raises(DataError, match=r"task.other: no row has the label 'Other' \(there are Pa"):
        names_of(RelationExtraction(), train=train)
    assert names_of(RelationExtraction(other="none"), train=train) == ("Part(e1,e2)", "none")
    assert names_of(RelationExtraction(other=None), train=train) == ("Part(e1,e2)", "none")


def encode(texts: list[str], max_length: int = 32, task: Any = None, **more: Any) -> Any:
    task = task or RelationExtraction()
    tokenizer = load_tokenizer(find_model("tiny-bert").location, task)
    found = task.encode({"text": texts, **more}, tokenizer, NAMES, max_length)
    return found, [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in found["input_ids"]]


def test_markers_are_tokens_and_the_opening_ones_are_read() -> None:
    found, (text,) = encode([TEXT], label=["Part(e1,e2)"])
    assert text == "[CLS] the <e1> dog </e1> was near a <e2> horse </e2> today [SEP]"
    assert found["read"] == [[2, 8]] and found["labels"] == [2] and found["truncated"] == [False]
    plain = "the dog was near a horse today"
    again, (other,) = encode([plain], head=[[19, 24]], tail=["4:7"])
    assert other == "[CLS] the <e2> dog </e2> was near a <e1> horse </e1> today [SEP]"
    assert again["read"] == [[8, 2]] and again["labels"] == [IGNORE_INDEX]


def test_types_have_markers_of_their_own() -> None:
    task = RelationExtraction(types=["ANIMAL", "THING"])
    assert len(task.markers()) == 8
    kinds = {"head_type": ["THING"], "tail_type": ["ANIMAL"]}
    _, (text,) = encode([TEXT], task=task, **kinds)
    marked_text = "<e1:THING> dog </e1:THING> was near a <e2:ANIMAL> horse </e2:ANIMAL>"
    assert text == f"[CLS] the {marked_text} today [SEP]"
    with pytest.raises(DataError, match=r"text 1: head_type 'X' is none of task.types"):
        encode([TEXT], task=task, head_type=["X"], tail_type=["ANIMAL"])
    with pytest.raises(DataError, match="there is no head_type - name its column"):
        encode([TEXT], task=task)


def test_a_long_text_is_cut_around_its_marks() -> None:
    long = f"{'rain ' * 40} {TEXT} {'storm ' * 40}"
    found, (text,) = encode([long], max_length=14)
    assert text == "[CLS] rain the <e1> dog </e1> was near a <e2> horse </e2> today [SEP]"
    assert found["truncated"] == [True] and found["read"] == [[3, 9]]
    apart = f"<e1>dog</e1> {'rain ' * 40} <e2>horse</e2>"
    _, (text,) = encode([apart], max_length=14)
    assert text == "[CLS] <e1> dog </e1> rain rain rain rain rain rain <e2> horse </e2> [SEP]"
    with pytest.raises(DataError, match=r"data.max_length: is 9, too few - use 10 or more"):
        encode([TEXT], max_length=9)


def official(gold: list[str], said: list[str]) -> dict[str, float]:
    """SemEval-2010 Task 8's scores, as its scorer explains them: slowly, a relation at a time."""
    scores = []
    for relation in ("Cause", "Part"):
        correct = wrong_direction = other_said = other_gold = 0
        for right, answer in zip(gold, said, strict=True):
            is_gold, is_said = right.startswith(relation), answer.startswith(relation)
            correct += is_gold and is_said and right == answer
            wrong_direction += is_gold and is_said and right != answer
            other_said += is_said and not is_gold
            other_gold += is_gold and not is_said
        said_all = correct + wrong_direction + other_said
        gold_all = correct + wrong_direction + other_gold
        precision = correct / said_all if said_all else 0.0
        recall = correct / gold_all if gold_all else 0.0
        both = precision + recall
        scores.append((precision, recall, 2 * precision * recall / both if both else 0.0))
    means = np.mean(scores, axis=0)
    return dict(zip(("precision", "recall", "f1"), means.tolist(), strict=True))


def scored(task: RelationExtraction, gold: list[str], said: list[str], names: Any = NAMES) -> Any:
    counts = task.counts([{"label": label} for label in said], EvalSplit(rows(gold), None, names))
    return tally_scores(counts, lambda sums: task.totals(sums, names), "f1", resamples=20)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1))
def test_scores_are_the_official_ones(pairs: list[tuple[str, str]]) -> None:
    gold, said = ([pair[side] for pair in pairs] for side in (0, 1))
    found = scored(RelationExtraction(), gold, said)
    for name, value in official(gold, said).items():
        assert found[name].value == pytest.approx(value)
    assert found["accuracy"].value == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_a_wrong_direction_is_an_error_of_precision_and_of_recall() -> None:
    gold = ["Cause(e1,e2)", "Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)", "Other", "Other"]
    said = ["Cause(e1,e2)", "Cause(e2,e1)", "Cause(e2,e1)", "Other", "Part(e1,e2)", "Other"]
    found = scored(RelationExtraction(), gold, said)
    # Cause: 2 right of 3 said and of 3 there; Part: none of 1 and of 1; Other is left out
    assert found["precision[Cause]"].value == found["recall[Cause]"].value == pytest.approx(2 / 3)
    assert found["f1[Part]"].value == 0
    assert found["f1"].value == pytest.approx(1 / 3)
    assert found["micro_f1"].value == pytest.approx(2 * 2 / (4 + 4))
    assert "f1[Other]" not in found and next(iter(found)) == "f1"


def test_without_direction_and_without_other_every_label_counts() -> None:
    gold, said = ["Cause(e1,e2)", "Part(e1,e2)"], ["Cause", "Cause"]
    found = scored(RelationExtraction(directed=False, other=None), gold, said, ("Cause", "Part"))
    assert found["f1"].value == pytest.approx((2 / 3 + 0) / 2)


def test_a_few_rows_of_each_relation_can_be_drawn() -> None:
    recipe = task_recipe({"kind": "relation_extraction"}, related, "tiny-bert", "lora", "none")
    few = recipe.but(**{"data.few_shot": 2})
    counts = Counter(few.splits(few.data.resolve()).train["label"])
    assert counts == {"Is-A(e1,e2)": 2, "Is-A(e2,e1)": 2, "Other": 2}


def test_the_baseline_is_the_most_frequent_label_of_train() -> None:
    train = rows(["Other", "Other", "Part(e1,e2)"])
    given = EvalSplit(rows(["Other", "Part(e1,e2)"]), None, NAMES, train=train)
    (said,) = RelationExtraction().baseline_answers(given).values()
    assert said == [{"label": "Other"}] * 2
    assert (
        scored(RelationExtraction(), ["Other", "Part(e1,e2)"], ["Other", "Other"])["f1"].value == 0
    )


def made(model: str, *overrides: str) -> tuple[Recipe, Any]:
    recipe = toy(model, "task=relation_extraction", "strategy=full", *overrides)
    source = find_model(model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    return recipe, load_model(recipe, source, tokenizer, NAMES, "fp32")


TEXTS = [TEXT, "<e2>rain</e2> and <e1>storm</e1>", f"{'a ' * 9}<e1>zoo</e1> <e2>dog</e2>"]


def said(recipe: Recipe, assembled: Any, most: int = 4096) -> Any:
    task = recipe.task
    encoded = task.encode({"text": TEXTS}, assembled.tokenizer, NAMES, 32)
    examples = [dict(zip(encoded, e, strict=True)) for e in zip(*encoded.values(), strict=True)]
    batches = longest_first([len(e["input_ids"]) for e in examples], most)
    found = merge_batches(predict_batches(assembled, task, examples, batches), encoded["labels"])
    return np.asarray(found.outputs), examples


@pytest.mark.parametrize("model", [name for name in TINY if name != "tiny-marian"])
def test_every_model_says_the_same_alone_packed_and_padded(model: str) -> None:
    recipe, assembled = made(model)
    together, _ = said(recipe, assembled)
    np.testing.assert_allclose(together, said(recipe, assembled, most=1)[0], atol=1e-5)
    apart, _ = said(*made(model, "training.packing=off"))
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-4


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("model", FIRST)
@torch.no_grad()
def test_the_head_reads_the_mean_of_both_opening_markers(model: str, packing: str) -> None:
    recipe, assembled = made(model, f"training.packing={packing}")
    found, examples = said(recipe, assembled)
    source = find_model(model)
    bare = load_model(
        toy(model, "strategy=full", "training.packing=off"),
        source,
        assembled.tokenizer,
        NAMES,
        "fp32",
    ).module
    bare.resize_token_embeddings(  # type: ignore[operator]
        assembled.module.get_input_embeddings().weight.shape[0], mean_resizing=False
    )
    bare.load_state_dict(assembled.module.state_dict())
    body = getattr(bare, bare.base_model_prefix)  # type: ignore[arg-type]
    pooler = getattr(body, "pooler", None)
    for example, row in zip(examples, found, strict=True):
        ids = torch.tensor([example["input_ids"]])
        states = body(input_ids=ids).last_hidden_state[0]
        read = states[example["read"]].mean(dim=0)[None, None]
        if pooler is not None:  # inside of the base: BERT's, ALBERT's
            expected = head_from(
                bare, pooler(read) if model == "tiny-bert" else pooler_of(body, read)
            )
        else:
            expected = head_from(bare, read)
        np.testing.assert_allclose(row, expected.softmax(-1)[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("strategy", ["lora", "adapter"])
def test_an_artifact_leaves_the_markers_frozen_embeddings_out(
    strategy: str, tmp_path: Path
) -> None:
    recipe, assembled = made("tiny-bert", f"strategy={strategy}")
    recipe.strategy.save(assembled.module, tmp_path)
    [path] = tmp_path.glob("*.safetensors")
    with safe_open(path, "pt") as stored:
        assert [name for name in stored.keys() if "embedding" in name] == []  # noqa: SIM118


def pooler_of(body: Any, read: Any) -> Any:
    """ALBERT's pooler, which is a layer and its activation."""
    return body.pooler_activation(body.pooler(read[:, 0]))


def head_from(model: Any, states: Any) -> Any:
    """What a classifier's head says of a sequence of one token, or of a pooled one."""
    kind = model.config.model_type
    if kind == "distilbert":
        return model.classifier(torch.relu(model.pre_classifier(states[:, 0])))
    if kind == "deberta-v2":
        return model.classifier(model.pooler(states))
    if kind == "modernbert":
        return model.classifier(model.head(states[:, 0]))
    return model.classifier(states)


def test_a_model_without_a_classifier_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"has no head for 'task: relation_extraction'"):
        made("tiny-marian")


@needs_shared
def test_semeval_is_read_whole_and_its_baseline_is_known() -> None:
    recipe = Recipe.load("lora_semeval", f"data.path={SHARED / 'semeval2010_task8'}")
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    names = recipe.task.label_names(splits)
    assert len(names) == 19 and names[-1] == "Other"
    given = EvalSplit(splits.test, None, names, train=splits.train, resamples=0)
    (constant,) = recipe.task.baseline_answers(given).values()
    counts = recipe.task.counts(constant, given)
    found = tally_scores(counts, lambda sums: recipe.task.totals(sums, names), "f1", resamples=0)
    assert found["f1"].value == 0 and found["accuracy"].value == pytest.approx(0.1671, abs=5e-5)
    source = find_model("tiny-bert")
    tokenizer = load_tokenizer(source.location, recipe.task)
    examples = encode_all(recipe, splits, tokenizer, source, names)
    assert len(examples["test"]) == 2717
