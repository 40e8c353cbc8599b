"""A first recipe for one's own data: guesses that are told, in a file that works."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftkit.data import Data
from peftkit.errors import DataError, RecipeError
from peftkit.starting import new

SHARED = Path(__file__).parents[2] / "shared" / "data"
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
    with pytest.raises(RecipeError, match=r"mails\.yaml stands there already"):
        new(Path("mails.csv"))


def test_a_number_on_a_scale_is_told_to_be_a_regression(tmp_path: Path) -> None:
    rows = [f"this is a fairly good text number {i},{i / 7:.2f},{i % 2}" for i in range(60)]
    with pytest.raises(DataError, match=r"'score': .*regression.*could be one: spam"):
        new(write(tmp_path / "a.csv", ["text,score,spam", *rows]))


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
