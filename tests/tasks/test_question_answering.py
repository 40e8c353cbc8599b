"""Question answering: windows, labels, losses and spans; every model that has such a head."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value

from peftkit.config.recipe import Recipe
from peftkit.data.base import Data
from peftkit.data.nested_column import nested_column
from peftkit.errors import DataError, RecipeError
from peftkit.evaluation.prediction import predict_batches
from peftkit.hub.resolve import find_model
from peftkit.hub.toy_models import TINY
from peftkit.loading.model import load_model, load_tokenizer
from peftkit.readers.base import reader_for
from peftkit.readers.lines import Record
from peftkit.tasks.base import IGNORE_INDEX, EvalSplit, Predictions, Task
from peftkit.tasks.question_answering.decoding import Considered
from peftkit.tasks.question_answering.spans import Span
from peftkit.tasks.question_answering.task import QuestionAnswering, labels_of

TASK = QuestionAnswering()
NAMED = "It was called Rex the Great!"
LONG = "The team saw a dög 🐕 near the big station. " * 6 + NAMED + " Nobody knew."
ROWS: dict[str, list[Any]] = {
    "question": ["what was it called?", "who knew", "where?"],
    "context": [LONG, "Nobody knew the dog.", "The horse was in a train near the hotel."],
    "answers": [
        {"text": ["Rex the Great"], "answer_start": [LONG.index("Rex")]},
        {"text": ["Nobody"], "answer_start": [0]},
        {"text": ["in a train"], "answer_start": [14]},
    ],
}
"""The first context is read in several windows of 64 tokens."""
WITH_HEADS = [
    n for n, (kind, _) in TINY.items() if kind not in ("gemma3_text", "marian", "t5", "bart")
]


def tokenizer(model: str = "tiny-bert") -> Any:
    return load_tokenizer(find_model(model).location)


def encoded(rows: dict[str, list[Any]], task: QuestionAnswering = TASK, window: int = 64) -> Any:
    return task.encode(rows, tokenizer(), (), window)


def examples(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]


def recipe(model: str, *overrides: str) -> Recipe:
    """A recipe with the task, whose synthetic data are never loaded."""
    task = "task={kind: question_answering}"
    return Recipe.load("lora_tiny", f"model={model}", "training.dropout=0", task, *overrides)


def made(model: str, *overrides: str) -> Any:
    source = find_model(model)
    return load_model(recipe(model, *overrides), source, tokenizer(model), (), "fp32")


def outputs(assembled: Any, chosen: list[dict[str, Any]]) -> list[np.ndarray]:
    (said,) = predict_batches(assembled, TASK, chosen, [range(len(chosen))])
    return said.outputs


def test_windows_hold_every_token_of_a_context_and_share_as_many_as_is_said() -> None:
    found = encoded(ROWS, QuestionAnswering(stride=9))
    whole = tokenizer()(LONG, add_special_tokens=False, return_offsets_mapping=True)
    first = [i for i, of in enumerate(found["of"]) if of == 0]
    assert len(first) > 2 and found["of"] == sorted(found["of"]) and set(found["of"]) == {0, 1, 2}
    places = [list(zip(found["starts"][i], found["ends"][i], strict=True)) for i in first]
    assert all(before[-9:] == after[:9] for before, after in pairwise(places))
    joined = places[0] + [place for window in places[1:] for place in window[9:]]
    assert joined == whole["offset_mapping"]
    assert all(len(ids) <= 64 for ids in found["input_ids"]) and not any(found["truncated"])


def test_a_window_is_the_tokenizers_own_pair() -> None:
    found = encoded({k: v[1:] for k, v in ROWS.items()})
    alone = tokenizer()(ROWS["question"][1:], ROWS["context"][1:])
    assert found["input_ids"] == alone["input_ids"]
    assert found["token_type_ids"] == alone["token_type_ids"]


def test_labels_point_to_the_answer_through_accents_and_emoji_or_else_to_the_first_token() -> None:
    found = encoded(ROWS)
    held = 0
    for row in examples(found):
        length, code = len(row["input_ids"]), row["labels"][0]
        low = (1 << 20) - 1
        assert code >> 40 == length and row["labels"][1:] == [IGNORE_INDEX] * (length - 1)
        start, end = code >> 20 & low, code & low
        answer = ROWS["answers"][row["of"]]["text"][0]
        context = ROWS["context"][row["of"]]
        if (start, end) != (0, 0):
            held += 1
            start, end = start - row["context"], end - row["context"]
            assert context[row["starts"][start] : row["ends"][end]] == answer
        else:
            assert answer not in context[row["starts"][0] : row["ends"][-1]]
    assert held >= 3


def test_what_is_not_known_is_not_learned() -> None:
    rows = {
        "question": ["a", "b", "c", "d"],
        "context": ["the dog", "the dog", "the dog", "dog " * 80],
        "answers": [
            {"text": ["cat"], "answer_start": [0]},
            {"text": [], "answer_start": []},
            None,
            {"text": ["dog " * 79 + "dog"], "answer_start": [0]},
        ],
    }
    assert not [x for labels in encoded(rows)["labels"] for x in labels if x != IGNORE_INDEX]
    nothing = encoded(rows, QuestionAnswering(unanswerable=True))
    codes = zip(nothing["of"], nothing["labels"], strict=True)
    known = {of for of, labels in codes if labels[0] >= 0}
    assert known == {1}
    assert nothing["labels"][1] == labels_of(len(nothing["input_ids"][1]), (0, 0))
    asked = encoded({"question": ["a"], "context": ["the dog"]})
    assert asked["labels"] == [[IGNORE_INDEX] * len(asked["input_ids"][0])]


def test_a_long_question_is_cut_by_itself_and_told() -> None:
    rows = {"question": ["dog " * 30, "🐕" * 40, "who?"], "context": ["the soup"] * 3}
    found = encoded(rows, QuestionAnswering(question_length=7))
    assert found["truncated"] == [True, False, False]
    assert [context - 2 for context in found["context"]] == [7, 1, 4]
    assert [len(starts) for starts in found["starts"]] == [2, 2, 2]


def test_windows_that_could_not_go_on_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"data.max_length: is 64: 16 .* 45 for the context.* 45"):
        encoded(ROWS, QuestionAnswering(stride=45))


def plain_loss(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """What transformers' own code says of one window."""
    code, low = row["labels"][0], (1 << 20) - 1
    inputs = {k: torch.tensor([row[k]]) for k in ("input_ids", "token_type_ids")}
    places = torch.tensor([code >> 20 & low]), torch.tensor([code & low])
    return model(**inputs, start_positions=places[0], end_positions=places[1]).loss


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_the_loss_is_the_sum_of_what_transformers_computes_for_each_window(packing: str) -> None:
    assembled = made("tiny-bert", "strategy=full", f"training.packing={packing}")
    rows = examples(encoded(ROWS))
    plain = made("tiny-bert", "strategy=full", "training.packing=off")
    expected = sum(plain_loss(plain.module, row) for row in rows)
    batch = assembled.batcher(rows)
    labels = batch.pop("labels")
    assert TASK.known(labels) == len(rows)
    found = TASK.loss(TASK.logits(assembled.module(**batch)), labels, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32


def test_windows_without_a_label_add_nothing_to_the_loss_and_keep_its_gradient() -> None:
    logits = torch.randn(7, 2, requires_grad=True)
    one = torch.tensor([IGNORE_INDEX] * 3 + labels_of(4, (1, 2)))
    expected = -logits[3:, 0].log_softmax(0)[1] / 2 - logits[3:, 1].log_softmax(0)[2] / 2
    torch.testing.assert_close(TASK.loss(logits, one, 0.0), expected)
    none = TASK.loss(logits, torch.full((7,), IGNORE_INDEX), 0.0)
    none.backward()
    assert none.item() == 0.0 and TASK.known(one) == 1


@pytest.mark.parametrize("model", WITH_HEADS)
def test_every_model_with_such_a_head_says_the_same_packed_padded_and_alone(model: str) -> None:
    rows = examples(TASK.encode(ROWS, tokenizer(model), (), 64))
    packed, padded = made(model), made(model, "training.packing=off")
    together = outputs(padded, rows)
    assert [len(each) for each in together] == [len(row["input_ids"]) for row in rows]
    for row, other, beside in zip(rows, outputs(packed, rows), together, strict=True):
        (alone,) = outputs(padded, [row])
        np.testing.assert_allclose(beside, alone, atol=2e-5)
        np.testing.assert_allclose(other, alone, atol=2e-5)


@pytest.mark.parametrize("strategy", ["lora", "{kind: prompt, num_virtual_tokens: 4}"])
def test_segments_reach_the_base_through_pefts_model(strategy: str) -> None:
    rows = examples(encoded(ROWS, window=56))
    assembled = made("tiny-bert", f"strategy={strategy}", "data.max_length=56")
    other = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in rows]
    said, without = outputs(assembled, rows), outputs(assembled, other)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(said, without, strict=True))
    if strategy == "lora":  # which begins as the base
        base = outputs(made("tiny-bert", "strategy=full", "data.max_length=56"), rows)
        for one, same in zip(said, base, strict=True):
            np.testing.assert_allclose(one, same, atol=2e-5)


@pytest.mark.parametrize("model", ["tiny-t5", "tiny-bart"])
def test_an_encoder_decoder_reads_its_input_twice(model: str) -> None:
    rows = examples(TASK.encode(ROWS, tokenizer(model), (), 64))
    assembled = made(model)
    assert assembled.parameters.head == 2 * 64 + 2
    for row, beside in zip(rows, outputs(assembled, rows), strict=True):
        np.testing.assert_allclose(beside, outputs(assembled, [row])[0], atol=2e-5)
    with pytest.raises(RecipeError, match="finds answers in token ids, and a prompt has none"):
        made(model, "strategy=prompt")


def test_a_language_models_checkpoint_keeps_its_weights_under_the_head(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = find_model("tiny-llama").location
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    tokenizer("tiny-llama").save_pretrained(tmp_path)
    source = find_model(str(tmp_path))
    ours = load_model(
        recipe(str(tmp_path), "strategy=linear_probe"), source, tokenizer("tiny-llama"), (), "fp32"
    )
    weights = dict(ours.module.named_parameters())
    for name, weight in model.model.named_parameters():
        assert torch.equal(weights[f"transformer.{name}"], weight), name


def given(rows: dict[str, list[Any]], task: QuestionAnswering, **more: Any) -> EvalSplit:
    return EvalSplit(rows, encoded(rows, task), (), resamples=0, **more)


def pointing(columns: dict[str, list[Any]], *wanted: tuple[int, str, float]) -> list[np.ndarray]:
    """Logits of zero, but for texts in rows that get a score, shared by their start and end."""
    found = [np.zeros((len(ids), 2), dtype=np.float32) for ids in columns["input_ids"]]
    for row, text, score in wanted:
        begin = ROWS["context"][row].index(text)
        for i, example in enumerate(examples(columns)):
            if example["of"] == row and begin in example["starts"]:
                end = begin + len(text)
                if end in example["ends"]:
                    at = example["context"]
                    found[i][at + example["starts"].index(begin), 0] = score / 2
                    found[i][at + example["ends"].index(end), 1] = score / 2
    return found


def test_the_best_span_of_all_windows_is_cut_from_the_context_as_it_stands() -> None:
    task = QuestionAnswering(n_best=2)
    asked = given(ROWS, task)
    said = pointing(asked.examples, (0, "dög 🐕", 6.0), (0, "Rex the Great", 8.0), (2, "horse", 4))
    for window in said:
        window[1:3] = 50.0  # the question may point wherever it will
    first, _, third = task.answers(Predictions([], said, None), asked)
    assert first["text"] == "Rex the Great" and first["score"] == pytest.approx(8.0)
    assert LONG[first["start"] : first["end"]] == first["text"]
    assert [each["text"] for each in first["candidates"]] != [first["text"]] * 2
    assert third["text"] == "horse" and third["start"] == 4
    short = QuestionAnswering(max_answer_length=2).answers(Predictions([], said, None), asked)
    assert short[0]["text"] != "Rex the Great"


def test_scores_compare_with_every_right_answer() -> None:
    right = [{"text": ["the great", "Rex"]}, {"text": ["x"]}, {"text": ["a train"]}]
    rows = {**ROWS, "answers": right}
    answers = [{"text": "great"}, {"text": "y"}, {"text": "in a train"}]
    counts = TASK.counts(answers, EvalSplit(rows, {}, ()))
    found = TASK.totals(counts.sum(axis=0, keepdims=True), ())
    assert found["exact_match"] == pytest.approx([1 / 3])
    assert found["f1"] == pytest.approx([(1 + 0 + 2 / 3) / 3])
    assert list(found) == ["f1", "exact_match"]


def test_no_answer_is_said_where_it_outscores_the_span_by_more_than_the_tuned_threshold() -> None:
    task = QuestionAnswering(unanswerable=True)
    none = {"text": [], "answer_start": []}
    rows = {**ROWS, "answers": [ROWS["answers"][0], none, ROWS["answers"][2]]}
    asked = given(rows, task)
    said = pointing(
        asked.examples, (0, "Rex the Great", 8.0), (1, "dog", 4.0), (2, "in a train", 4)
    )
    for window, of in zip(said, asked.examples["of"], strict=True):
        window[0] = {0: 2.0, 1: 5.0, 2: 3.0}[of]  # margins of -4, 6 and 2
    found = Predictions([], said, None)
    assert [each["text"] for each in task.answers(found, asked)] == ["Rex the Great", "", ""]
    tuned = task.fit_on_validation(found, asked)
    assert tuned == {"threshold": pytest.approx(2.0)}
    told = task.answers(found, given(rows, task, fitted_state=tuned))
    assert [each["text"] for each in told] == ["Rex the Great", "", "in a train"]
    assert told[1]["start"] is None and told[1]["margin"] == pytest.approx(6.0)
    scores = task.totals(task.counts(told, asked).sum(axis=0, keepdims=True), ())
    assert {name: value[0] for name, value in scores.items()} == {
        "f1": 1.0, "exact_match": 1.0, "f1[answerable]": 1.0,
        "exact_match[answerable]": 1.0, "f1[unanswerable]": 1.0,
    }  # fmt: skip
    assert (
        "2.0000" in task.fitted_state_notes(tuned)[0]
        and "nothing to tune" in task.fitted_state_notes({})[0]
    )
    assert TASK.fit_on_validation(found, asked) == {} and TASK.fitted_state_notes({}) == ()
    assert Considered([], 0.0).margin > Considered([Span(0, 1, 0.0)], 9.0).margin


def test_baselines_are_spans_of_the_context() -> None:
    simple = TASK.baseline_answers(EvalSplit(ROWS, {}, ()))
    assert list(simple) == ["whole context", "first sentence", "most alike sentence"]
    assert simple["most alike sentence"][0]["text"] == NAMED
    assert simple["whole context"][1]["text"] == ROWS["context"][1]
    nothing = QuestionAnswering(unanswerable=True).baseline_answers(EvalSplit(ROWS, {}, ()))
    assert next(iter(nothing)) == "no answer" and nothing["no answer"][0]["text"] == ""


def test_lines_of_predictions_hold_no_text_of_the_source() -> None:
    task = QuestionAnswering(n_best=3, unanswerable=True)
    asked = given(ROWS, task)
    said = Predictions([], pointing(asked.examples, (0, "Rex the Great", 8.0)), None)
    line, *_ = task.prediction_lines(said, asked)
    assert set(line) == {"start", "end", "score", "margin", "counts"}
    assert line["counts"] == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def splits(train: list[Any], test: list[Any] = ()) -> Any:  # type: ignore[assignment]
    """Splits with these cells of answers, all to one context."""

    def rows(split: str, cells: list[Any]) -> Dataset:
        names = [f"{split}:{i}" for i in range(len(cells))]
        columns = {"row": names, "context": ["a dog, a cat and a dog"] * len(cells)}
        text = Value("string")
        kinds = Features({"row": text, "context": text, "answers": nested_column()})
        return Dataset.from_dict({**columns, "answers": cells}, features=kinds)

    parts = {"train": train, "validation": [], "test": test}
    return SimpleNamespace(**{split: rows(split, list(cells)) for split, cells in parts.items()})


GOOD = {"text": ["cat"], "answer_start": [9]}
LOST = {"text": ["Cat"], "answer_start": [9]}
NONE: dict[str, list[Any]] = {"text": [], "answer_start": []}


def test_everything_wrong_with_answers_is_told_at_once() -> None:
    with pytest.raises(DataError) as caught:
        TASK.label_names(splits([GOOD, LOST, NONE, NONE, {"text": 7}], [LOST]))
    said = str(caught.value)
    assert "train, column of 'answers': 2 rows (train:2, train:3) have no answer" in said
    assert "task.unanswerable=true" in said and "task.unfound=drop" in said
    assert "train:1 'Cat'" in said and "test:0 'Cat'" in said
    assert "answers in a form that is not known" in said
    with pytest.raises(DataError, match="nothing to train on"):
        QuestionAnswering(unfound="drop").label_names(splits([LOST]))


def test_what_was_repaired_dropped_and_left_unused_is_told() -> None:
    task = QuestionAnswering(unfound="drop", unanswerable=True)
    wrong, two = (
        {"text": ["cat"], "answer_start": [1]},
        {"text": ["cat", "a cat"], "answer_start": [9, 7]},
    )
    found = splits([GOOD, LOST, NONE, wrong, two], [LOST])
    assert task.label_names(found) == ()
    none = {"of": [], "truncated": [], "labels": []}
    train = {"of": [0, 2, 3], "truncated": [True, False, False], "labels": [[1], [1], [1]]}
    notes = task.encoding_notes(found, {"train": train, "validation": none, "test": none})
    assert notes == (
        "train: 1 row (train:1 'Cat') has answers not in the context; nothing is learned from them",
        "train: 1 answers are not at their answer_start (train:3); the place where they are found "
        "is used",
        "train: 1 rows have several answers; the first is learned",
        "train: the questions of 1 rows are cut (task.question_length)",
        "train: the answers of 1 rows fit no window whole; nothing is learned from them",
        "test: 1 row (test:0 'Cat') has answers not in the context; they are scored",
    )


def squad(count: int, unanswerable: bool = True) -> dict[str, Any]:
    """A file of SQuAD's own form, whose answers are the word behind 'called'."""
    names = ["rex", "fog", "choir", "eagle"]
    articles = []
    for i in range(count):
        name = names[i % 4]
        context = f"it was {'called ' + name if i % 3 else 'a ' + name} near the station {i} ."
        answers = [{"text": name, "answer_start": context.index(name)}] if i % 3 else []
        asked = {"id": f"q{i}", "question": "what was it called ?", "answers": answers}
        asked["is_impossible"] = not answers
        if answers or unanswerable:
            articles.append({"title": "x", "paragraphs": [{"context": context, "qas": [asked]}]})
    return {"version": "v2.0", "data": articles}


@pytest.mark.parametrize("indent", [None, 1])
def test_squads_own_files_are_read_a_question_a_row(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(squad(4), indent=indent))
    found = [each for each in reader_for(path).records(path) if isinstance(each, Record)]
    assert [each.place for each in found] == ["row 0", "row 1", "row 2", "row 3"]
    assert found[0].values["answers"] == {"text": [], "answer_start": []}
    assert found[1].values == {
        "id": "q1",
        "title": "x",
        "context": "it was called fog near the station 1 .",
        "question": "what was it called ?",
        "answers": {"text": ["fog"], "answer_start": [14]},
    }
    path.write_text('{"data": [{"text": "plain"}], "version": 1}')
    (row,) = reader_for(path).records(path)
    assert isinstance(row, Record) and row.values == json.loads(path.read_text())


def test_a_question_asked_again_under_another_id_is_counted(tmp_path: Path) -> None:
    rows = squad(20)
    rows["data"][3]["paragraphs"][0] = json.loads(json.dumps(rows["data"][1]["paragraphs"][0]))
    rows["data"][3]["paragraphs"][0]["qas"][0]["id"] = "another"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    data = Data.parse({"kind": "files", "path": str(tmp_path), "test": 2, "validation": 2}, "data")
    found = data.load(data.resolve(), TASK.roles)
    assert found.facts["duplicates"] + found.facts["overlap"] == 1


def test_empty_contexts_are_refused_with_their_count(tmp_path: Path) -> None:
    rows = squad(20)
    for i in (4, 5):
        rows["data"][i]["paragraphs"][0]["context"] = " "
    (tmp_path / "train.json").write_text(json.dumps(rows))
    data = Data.parse({"kind": "files", "path": str(tmp_path)}, "data")
    with pytest.raises(DataError, match=r"'context': is empty in 2 rows \(row 4, row 5\)"):
        data.load(data.resolve(), TASK.roles)


def test_a_run_from_squads_file_to_predictions(tmp_path: Path) -> None:
    import peftkit

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text(json.dumps(squad(60)))
    made = Recipe.load(
        "lora_tiny",
        f"data={{kind: files, path: {tmp_path / 'data'}, max_length: 64}}",
        "task={kind: question_answering, unanswerable: true}",
        "training.threads=1",
        "training.proof=run",
    )
    record = peftkit.train(made, tmp_path / "runs")
    assert record.status == "finished" and record.headline == "f1"
    assert {"f1", "exact_match", "f1[answerable]"} <= set(record.scores)
    assert set(record.baselines) >= {"no answer", "whole context"}
    assert any("margin" in note for note in record.notes)
    folder = tmp_path / "runs" / record.folder_name
    (said,) = peftkit.predict(folder, [("what was it called ?", "it was called rex .")])
    assert {"text", "start", "end", "score", "margin"} <= set(said)
    merged = peftkit.merge(folder, to=tmp_path / "merged")
    assert merged.proof is not None and merged.proof.largest < 1e-4
    lines = (folder / "predictions.jsonl").read_text()
    assert "station" not in lines and '"counts"' in lines


def test_the_task_is_found_by_its_name() -> None:
    assert isinstance(Task.parse("question_answering", "task"), QuestionAnswering)
