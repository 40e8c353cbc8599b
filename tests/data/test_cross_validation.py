"""Folding: every row is scored once, by label, groups stay together, and runs keep their names."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.recipe import Recipe
from peftkit.data.base import Data
from peftkit.data.splits import Splits
from peftkit.errors import DataError, RecipeError
from peftkit.hub.source import Source

ROLES = {"text": True, "text_pair": False, "label": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def some_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """A third of them 'bad'; four rows by each author."""
    return [
        {"text": f"text {i}", "label": "good" if i % 3 else "bad", "author": i // 4}
        for i in range(start, start + count)
    ]


def fold(path: Path, take: int, of: int = 5, **settings: Any) -> Splits:
    parsed = {"kind": "files", "path": str(path), "folds": of, "fold": take, **settings}
    data = Data.parse(parsed, "data")
    return data.load(data.resolve(), ROLES)


def test_every_row_is_scored_in_one_fold_and_labels_keep_their_proportions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", some_rows(60))
    folds = [fold(path, take) for take in range(5)]
    scored = [row for each in folds for row in each.test["row"]]
    assert sorted(scored) == sorted(f"a.jsonl:{i}" for i in range(60))
    for each in folds:
        assert Counter(each.test["label"]) == {"bad": 4, "good": 8}
        assert (each.train.num_rows, each.validation.num_rows) == (43, 5)
        parts = [set(part["row"]) for part in (each.train, each.validation, each.test)]
        assert len(set.union(*parts)) == 60 == sum(map(len, parts))
    assert "fold 3 of 5: 12 of 60 rows are scored" in folds[3].notes


def test_the_splits_of_the_files_are_dealt_anew_and_those_without_labels_left_out(
    tmp_path: Path,
) -> None:
    write(tmp_path / "train.jsonl", some_rows(30))
    write(tmp_path / "validation.jsonl", some_rows(15, 30))
    write(tmp_path / "test.jsonl", [{"text": "x", "label": None} for _ in range(9)])
    found = fold(tmp_path, 0, 3)
    assert sum(part.num_rows for part in (found.train, found.validation, found.test)) == 45
    files = {row.partition(":")[0] for row in found.test["row"]}
    assert files == {"train.jsonl", "validation.jsonl"}
    assert "cross-validation splits the rows of train, validation again" in found.notes


def test_folds_are_dealt_by_the_datas_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", some_rows(60))
    one, again, other = fold(path, 1), fold(path, 1), fold(path, 1, seed=-7)
    assert one.test["row"][:] == again.test["row"][:] and one.key == again.key
    assert one.test["row"][:] != other.test["row"][:]
    assert len({one.key, other.key, fold(path, 2).key}) == 3


@pytest.mark.parametrize("labeled", [True, False])
def test_rows_of_a_group_are_never_learned_from_and_scored(labeled: bool, tmp_path: Path) -> None:
    rows = some_rows(120)
    if not labeled:  # fractions are no classes
        rows = [{**row, "label": i / 7} for i, row in enumerate(rows)]
    path = write(tmp_path / "a.jsonl", rows)
    author = {f"a.jsonl:{i}": row["author"] for i, row in enumerate(rows)}
    for take in range(4):
        found = fold(path, take, 4, group="author")
        learned = {author[row] for part in (found.train, found.validation) for row in part["row"]}
        scored = {author[row] for row in found.test["row"]}
        assert scored and not learned & scored
        assert found.train.column_names == ["row", "text", "label"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"of": 21}, "data.folds: is 21, but label 'bad' has only 20 rows - use data.folds=20"),
        ({"of": 16, "group": "author"}, "has only 15 groups - use data.folds=15"),
        ({"group": "autor"}, "has no column 'autor' (data.group), it has author, label, text"),
        ({"group": "half"}, "column 'half': is empty in 30 rows"),
    ],
)
def test_what_cannot_be_dealt_is_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    rows = [{**row, "half": i % 2 or None} for i, row in enumerate(some_rows(60))]
    path = write(tmp_path / "a.jsonl", rows)
    if settings.get("group") != "half":
        path = write(tmp_path / "b.jsonl", some_rows(60))
    with pytest.raises(DataError) as refused:
        fold(path, 0, **settings)
    assert said in str(refused.value)


def test_a_class_of_one_row_and_a_fold_without_a_class_are_told(tmp_path: Path) -> None:
    alone = [*some_rows(20), {"text": "other", "label": "odd", "author": 99}]
    with pytest.raises(DataError, match="label 'odd' has only 1 row - give more rows, or remove"):
        fold(write(tmp_path / "a.jsonl", alone), 0, 2)
    # one author wrote nearly all that is rare
    rows = [{"text": f"t{i}", "label": "rare", "author": "0"} for i in range(9)]
    rows += [{"text": f"u{i}", "label": "often", "author": f"{i % 12}"} for i in range(60)]
    rows += [{"text": f"v{i}", "label": "rare", "author": f"{i}"} for i in range(1, 3)]
    path = write(tmp_path / "b.jsonl", rows)
    found = [fold(path, take, 3, group="author") for take in range(3)]
    for each in found:
        lacking = "rare" not in each.test["label"][:]
        assert any("has no row labeled rare" in note for note in each.notes) == lacking
    assert all(each.test.num_rows for each in found)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["data.folds=5"],
            "data.folds .*is 5, but data.fold is not set - set data.fold to 0 up to 4",
        ),
        (["data.folds=5", "data.fold=5"], "there is no fold 5 - set data.fold to 0 up to 4"),
        (["data.fold=1"], "is not set, but data.fold=1 is - set the number of folds"),
        (["data.group=author"], "data.group .*set data.folds, or remove it"),
        (["data.folds=1", "data.fold=0"], r"greater than or equal to 2 \(got 1\)"),
    ],
)
def test_settings_that_name_no_fold_are_refused_before_anything_is_read(
    settings: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.load("lora_tiny", *settings)


def test_runs_without_folds_keep_the_name_that_they_had_before_there_were_any() -> None:
    def source(name: str) -> Source:
        return Source(requested=name, used=name, origin="path", location="", identity=name)

    def digest(*settings: str) -> str:
        return Recipe.load("lora_tiny", *settings).digest(source("a"), source("b"))

    assert digest() == "11b99c2ad3a220f393e4710d658287d5c5efe623029ba9e9489916f80dc5854e"
    assert len({digest(), *(digest("data.folds=2", f"data.fold={i}") for i in range(2))}) == 3
    data = Recipe.load("lora_tiny").data
    assert data.key(source("b"), data.wanted({"text": True, "label": True})).startswith("8e6232dc7")
    assert "folds" not in Recipe.load("lora_tiny").settings()["data"]


def test_synthetic_texts_have_folds_but_no_groups() -> None:
    data = Data.parse({"kind": "synthetic", "rows": 40, "folds": 4, "fold": 3}, "data")
    assert data.load(data.resolve(), ROLES).test.num_rows == 10
    grouped = data.model_copy(update={"group": "author"})
    with pytest.raises(DataError, match="have no group"):
        grouped.load(data.resolve(), ROLES)
