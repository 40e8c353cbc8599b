"""Text that a tokenizer has no tokens for gives a note, for every task, with an example."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.recipe import Recipe
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.preprocessing.tokenization import encode, noted
from support.varied_rows import classified, pairs

LATIN = [{"text": f"food sport team {n}", "label": "ab"[n % 2]} for n in range(40)]
WORDS = [row["text"].split() for row in classified("Cyrillic", 40)]


def told(folder: Path, model: str, task: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The notes on unknown tokens."""
    folder.mkdir()
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = f"data={{kind: files, path: {folder / 'rows.jsonl'}, max_length: 96}}"
    recipe = Recipe.load("lora_tiny", f"model={model}", f"task={task}", data)
    splits = recipe.splits(recipe.data.resolve())
    names, source = recipe.task.label_names(splits), find_model(model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    examples = encode(recipe, splits, tokenizer, source, names)
    notes = noted(recipe, splits, examples, tokenizer, names).notes
    return [note for note in notes if "unknown to the tokenizer" in note]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_model("tiny-bert"), find_model("tiny-gpt2"), find_model("tiny-bart")
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


CASES: dict[str, tuple[str, list[Any]]] = {
    "text_classification": ("tiny-bert", classified("Cyrillic", 40)),
    "{kind: token_classification, scheme: none}": (
        "tiny-bert",
        [{"tokens": words, "tags": ["AB"[len(w) % 2] for w in words]} for words in WORDS],
    ),
    "question_answering": (
        "tiny-bert",
        [
            {
                "question": "which?",
                "context": " ".join(words),
                "answers": {"text": [words[0]], "answer_start": [0]},
            }
            for words in WORDS
        ],
    ),
    "text_generation": ("tiny-gpt2", [{"text": " ".join(words)} for words in WORDS]),
    "{kind: translation, target_length: 40}": ("tiny-bart", pairs("Cyrillic", 40)),
}


@pytest.mark.parametrize("task", CASES)
def test_a_text_in_letters_that_the_tokenizer_lacks_is_told_of(task: str, tmp_path: Path) -> None:
    model, rows = CASES[task]
    (note,) = told(tmp_path / "rows", model, task, rows)
    share = float(note.removeprefix("train: ").split("%")[0])
    assert 20 < share < 100
    word = note.split(", such as '")[1].split("'")[0]
    assert word and not word.isascii() and word in json.dumps(rows, ensure_ascii=False)


def test_texts_that_it_knows_are_not_spoken_of(tmp_path: Path) -> None:
    assert told(tmp_path / "rows", "tiny-bert", "text_classification", LATIN) == []


def test_one_strange_word_among_thousands_is_not_spoken_of(tmp_path: Path) -> None:
    once = [{**row, "text": "a b c " * 20} for row in LATIN]
    once[0] = {**once[0], "text": once[0]["text"] + "мост"}
    assert told(tmp_path / "rows", "tiny-bert", "text_classification", once) == []
