"""A first recipe for one's own data: guesses that are told, in a file that works."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftkit.config.recipe import Recipe
from peftkit.data.base import Data
from peftkit.errors import DataError, RecipeError
from peftkit.scaffold.recipe_writer import new

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mails(count: int = 60) -> list[str]:
    chance = random.Random(0)
    header = "id,subject,body,folder,sent"
    rows = [
        f'{i},"Order {i}","{" ".join(chance.choices(WORDS, k=20))}",{FOLDERS[i % 3]},2026-01-{i}'
        for i in range(count)
    ]
    return [header, *rows]


WORDS = [
    "please",
    "send",
    "the",
    "bill",
    "again",
    "since",
    "it",
    "is",
    "lost",
    "thank",
    "you",
    "kindly",
    "for",
    "your",
    "help",
    "today",
]
FOLDERS = ["billing", "no", "true"]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def guessed(text: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(text)["data"]
    return data


def test_text_and_label_are_told_from_ids_and_dates(tmp_path: Path) -> None:
    recipe = new(write(tmp_path / "my mails.csv", mails()))
    data = guessed(recipe.text)
    assert (data["text"], data["label"]) == ("body", "folder")
    assert recipe.path == Path("recipes/my_mails.yaml") and recipe.path.read_text() == recipe.text
    assert any("folder" in line and "billing, no, true" in line for line in recipe.lines)
    assert all(f"#   {line}" in recipe.text for line in recipe.lines)


def test_the_recipe_it_writes_reads_the_data() -> None:
    recipe = new(write(Path("mails.csv"), mails()))
    data = Data.parse(guessed(recipe.text), "data")
    splits = data.load(data.resolve(), {"text": True, "text_pair": False, "label": True})
    assert set(splits.train["label"]) == set(FOLDERS) and data.max_length == 32


def test_a_relative_path_stays_relative_and_the_recipe_goes_where_it_is_asked_to() -> None:
    write(Path("mails.csv"), mails())
    recipe = new(Path("mails.csv"), Path("mine.yaml"))
    assert guessed(recipe.text)["path"] == "mails.csv" and Path("mine.yaml").is_file()


def test_the_same_recipe_may_be_written_again_and_another_is_not_overwritten() -> None:
    new(write(Path("mails.csv"), mails()))
    new(Path("mails.csv"))
    Path("recipes/mails.yaml").write_text("model: mine\n")
    with pytest.raises(RecipeError, match=r"mails\.yaml already exists"):
        new(Path("mails.csv"))


def test_a_number_on_a_scale_is_a_regression_and_other_labels_are_mentioned(
    tmp_path: Path,
) -> None:
    rows = [f"this is a fairly good text number {i},{i / 7:.2f},{i % 2}" for i in range(60)]
    recipe = new(write(tmp_path / "a.csv", ["text,score,spam", *rows]))
    assert task_of(recipe.text) == {"kind": "regression"}
    assert guessed(recipe.text)["label"] == "score"
    assert "label: column 'score' (numbers from 0 to 8.43)" in recipe.lines
    assert "note: columns that could be a label of classes: spam" in recipe.lines


def task_of(text: str) -> dict[str, Any]:
    said: Any = yaml.safe_load(text)["task"]
    return {"kind": said} if isinstance(said, str) else dict(said)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(path, [json.dumps(row) for row in rows])


def sentence(i: int) -> str:
    return " ".join(random.Random(i).choices(WORDS, k=9))


MADE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "regression": (
        lambda i: {"sentence1": sentence(i), "sentence2": sentence(-i), "score": i / 7},
        {"kind": "regression"},
        {"text": "sentence1", "text_pair": "sentence2", "label": "score"},
    ),
    "pairs": (
        lambda i: {"premise": sentence(i), "hypothesis": sentence(-i), "label": i % 3},
        {"kind": "text_classification"},
        {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    ),
    "lists": (
        lambda i: {"text": sentence(i), "topics": ["a", "b", "c"][: i % 3]},
        {"kind": "multilabel"},
        {"text": "text", "label": "topics"},
    ),
    "separated": (
        lambda i: {"text": sentence(i), "labels": ["red", "blue;red", "green", "green;red"][i % 4]},
        {"kind": "multilabel", "separator": ";"},
        {"text": "text", "label": "labels"},
    ),
    "names": (
        lambda i: {"id": i, "tokens": sentence(i).split(), "ner_tags": [*["O"] * 8, "B-PER"]},
        {"kind": "token_classification"},
        {"columns": {"tags": "ner_tags"}},
    ),
    "parts": (
        lambda i: {"words": sentence(i).split(), "pos": [*["DT"] * 5, *["NN"] * 4]},
        {"kind": "token_classification", "scheme": "none"},
        {"columns": {"tokens": "words", "tags": "pos"}},
    ),
    "relation_extraction": (
        lambda i: {
            "sentence": f"the <e1>cat</e1> {sentence(i)} <e2>mat</e2>",
            "relation": f"r{i % 2}",
        },
        {"kind": "relation_extraction", "other": None},
        {"text": "sentence", "label": "relation"},
    ),
    "squad": (
        lambda i: {
            "id": str(i),
            "question": f"what is {sentence(i)}?",
            "context": f"{WORDS[0]} {sentence(i)} {sentence(-i)}",
            "answers": {"text": [WORDS[0]], "answer_start": [0]},
        },
        {"kind": "question_answering"},
        {},
    ),
    "squad2": (
        lambda i: {
            "question": f"what is {sentence(i)}?",
            "context": f"{WORDS[0]} {sentence(i)} {sentence(-i)}",
            "answers": {"text": [WORDS[0]][: i % 2], "answer_start": [0][: i % 2]},
        },
        {"kind": "question_answering", "unanswerable": True},
        {},
    ),
    "chats": (
        lambda i: {
            "messages": [
                {"role": "user", "content": sentence(i)},
                {"role": "assistant", "content": sentence(-i)},
            ]
        },
        {"kind": "instruction_tuning"},
        {},
    ),
    "alpaca": (
        lambda i: {"instruction": sentence(i), "input": "", "output": sentence(-i)},
        {"kind": "instruction_tuning"},
        {},
    ),
    "completions": (
        lambda i: {"prompt": sentence(i), "completion": sentence(-i)},
        {"kind": "instruction_tuning"},
        {},
    ),
    "summaries": (
        lambda i: {"id": i, "dialogue": sentence(i) * 3, "summary": sentence(-i)},
        {"kind": "summarization"},
        {"columns": {"source": "dialogue", "target": "summary"}},
    ),
    "languages": (
        lambda i: {"en": sentence(i), "de": sentence(-i)},
        {"kind": "translation", "into": "German"},
        {"columns": {"source": "en", "target": "de"}},
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_the_task_is_told_from_the_columns_and_its_recipe_runs(name: str) -> None:
    row, task, data = MADE[name]
    found = new(jsonl(Path(f"{name}.jsonl"), [row(i) for i in range(90)]))
    assert task_of(found.text) == task
    said = guessed(found.text)
    known = ("text", "text_pair", "label", "columns")
    assert {key: said[key] for key in known if key in said} == data
    recipe = Recipe.load(str(found.path))
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    recipe.task.label_names(splits)  # which refuses what cannot be learned
    assert len(splits.train)


def test_two_answers_to_many_questions_are_classes() -> None:
    rows = [{"question": f"is {sentence(i)}?", "answer": ["yes", "no"][i % 2]} for i in range(60)]
    recipe = new(jsonl(Path("asked.jsonl"), rows))
    assert task_of(recipe.text) == {"kind": "text_classification"}
    assert guessed(recipe.text)["label"] == "answer"


def test_data_without_text_or_label_says_what_its_columns_hold(tmp_path: Path) -> None:
    numbers = write(tmp_path / "a.csv", ["x,y", *(f"{i},{i % 2}" for i in range(30))])
    with pytest.raises(DataError, match="no column holds texts"):
        new(numbers)
    alone = write(tmp_path / "b.csv", ["text", *(f"some words and {i}" for i in range(30))])
    with pytest.raises(DataError, match="none holds 2 to 100 values"):
        new(alone)


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: is not json"):
        new(write(tmp_path / "a.jsonl", ['{"text": "a b c", "label": 1}', "{"]))
    with pytest.raises(DataError, match="no such file"):
        new(Path("nothing.csv"))


def test_empty_cells_are_mentioned(tmp_path: Path) -> None:
    rows = [*mails(), '99,"none","",billing,2026-01-01']
    lines = new(write(tmp_path / "a.csv", rows)).lines
    assert "mind: column 'body' is empty in 1 rows, which training refuses" in lines


@needs_shared
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("stsb", {"kind": "regression"}),
        ("conll2003", {"kind": "token_classification"}),
        ("squad", {"kind": "question_answering"}),
        ("multi30k", {"kind": "translation", "into": "German"}),
        ("samsum", {"kind": "summarization"}),
        ("gsm8k", {"kind": "instruction_tuning"}),
        ("alpaca", {"kind": "instruction_tuning"}),
        ("semeval2010_task8", {"kind": "relation_extraction"}),
        ("cola", {"kind": "text_classification"}),
    ],
)
def test_the_task_of_real_data_sets_is_guessed_right(name: str, task: dict[str, Any]) -> None:
    assert task_of(new(SHARED / name).text) == task


@needs_shared
@pytest.mark.parametrize(
    ("name", "text", "pair", "splits"),
    [
        ("imdb", "text", None, "validation rows are carved"),
        ("sst2", "sentence", None, "validation is scored"),
        ("mrpc", "sentence1", "sentence2", "validation = validation.parquet"),
    ],
)
def test_real_data_sets_are_guessed_right(
    name: str, text: str, pair: str | None, splits: str
) -> None:
    recipe = new(SHARED / name)
    data = guessed(recipe.text)
    assert (data["text"], data.get("text_pair"), data["label"]) == (text, pair, "label")
    assert any(splits in line for line in recipe.lines)
