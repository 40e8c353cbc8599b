"""What is learned from: a few rows of each class, rare ones again, copies with changed words."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.composition import Composition
from peftkit.config.recipe import Recipe
from peftkit.data.augmentation import Augment, augment_rows
from peftkit.errors import DataError, RecipeError
from peftkit.hub.source import Source
from peftkit.records.record import read_record
from support.data_files import load, own_cache, some_rows, write

__all__ = ["own_cache"]
INPUTS = ("text", "text_pair")


def texts(rows: Any) -> list[str]:
    return list(rows["text"])


def test_few_shot_draws_rows_of_each_class_and_a_larger_draw_holds_the_smaller(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.csv", some_rows(90))
    whole, few, more = (load(path, **{"few_shot": k} if k else {}) for k in (0, 4, 8))
    assert Counter(few.train["label"]) == {"good": 4, "bad": 4}
    assert set(few.train["row"]) < set(more.train["row"]) < set(whole.train["row"])
    assert texts(few.test) == texts(whole.test) and texts(few.validation) == texts(whole.validation)
    assert few.facts["train"] == 8
    assert any("few-shot: 4 rows per class" in note for note in few.notes)
    other = load(path, few_shot=4, seed=1)
    assert set(other.train["row"]) != set(few.train["row"])


def test_few_shot_names_the_classes_that_have_fewer_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", some_rows(30))
    with pytest.raises(
        DataError, match=r"data.few_shot.*is 9, but .*'bad' has \d - use \d or less"
    ):
        load(path, few_shot=9)


def test_oversampling_gives_every_class_as_many_rows_and_touches_train_alone(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.csv", some_rows(90))
    plain, even = load(path), load(path, balance="oversample")
    counts = Counter(even.train["label"])
    assert counts["good"] == counts["bad"] == Counter(plain.train["label"])["good"]
    times = Counter(even.train["row"])
    assert set(times) == set(plain.train["row"])
    bad = [times[row] for row, label in zip(plain.train["row"], plain.train["label"], strict=True)
           if label == "bad"]  # fmt: skip
    assert max(bad) - min(bad) <= 1
    assert texts(even.test) == texts(plain.test)
    assert even.facts["oversampled"] == len(even.train) - len(plain.train) > 0
    assert even.facts["duplicates"] == 0  # of the rows as they are
    assert texts(load(path, balance="oversample").train) == texts(even.train)


def long_rows(count: int) -> list[dict[str, str]]:
    return [
        {"text": " ".join(f"w{i}x{j}" for j in range(20)), "label": "ab"[i % 2]}
        for i in range(count)
    ]


def copies(tmp_path: Path, **how: Any) -> list[tuple[list[str], list[str]]]:
    """Each training text and a copy of it, as words."""
    path = write(tmp_path / "a.jsonl", long_rows(40))
    from peftkit.data.base import Data

    data = Data.parse({"kind": "files", "path": str(path), "augment": how}, "data")
    splits = data.load(data.resolve(), {"text": True, "label": True}, INPUTS)
    rows, half = texts(splits.train), len(splits.train) // 2
    assert splits.facts["augmented"] == half and splits.facts["train"] == 2 * half
    assert not any("~" in row for row in [*splits.test["row"], *splits.validation["row"]])
    labels = list(splits.train["label"])
    assert labels[:half] == labels[half:]
    assert [f"{row}~1" for row in splits.train["row"][:half]] == splits.train["row"][half:]
    return [(a.split(), b.split()) for a, b in zip(rows[:half], rows[half:], strict=True)]


def test_dropout_leaves_words_out_in_their_order(tmp_path: Path) -> None:
    for words, copy in copies(tmp_path, dropout=0.3):
        assert 0 < len(copy) < len(words) and [w for w in words if w in set(copy)] == copy


def test_swaps_keep_the_words(tmp_path: Path) -> None:
    for words, copy in copies(tmp_path, swap=0.4):
        assert sorted(words) == sorted(copy) and words != copy


def test_noise_replaces_words_by_others_of_train(tmp_path: Path) -> None:
    pairs = copies(tmp_path, noise=0.4)
    known = {word for words, _ in pairs for word in words}
    for words, copy in pairs:
        assert len(words) == len(copy) and words != copy and set(copy) <= known
    kept = sum(a == b for words, copy in pairs for a, b in zip(words, copy, strict=True))
    assert 0.5 < kept / sum(len(words) for words, _ in pairs) < 0.7


def test_copies_are_the_same_for_the_same_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", long_rows(20))
    rows = load(path).train
    how = Augment(dropout=0.1, swap=0.1, noise=0.1, copies=2)
    one, again, other = (texts(augment_rows(rows, how, ["text"], seed)) for seed in (0, 0, 1))
    assert one == again != other and len(one) == 3 * len(rows)
    assert one[len(rows) : 2 * len(rows)] != one[2 * len(rows) :]


def test_a_text_of_one_word_stays_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": w, "label": w} for w in "abcdefgh"])
    found = augment_rows(load(path).train, Augment(dropout=0.9), ["text"], 0)
    assert all(text.strip() for text in found["text"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.augment={copies: 2}"], "changes no word - set dropout, swap or noise"),
        (["task=regression", "data.few_shot=3"], "data.few_shot.*no meaning for 'task: regr"),
        (["task=regression", "data.balance=oversample"], "data.balance.*no meaning"),
        (["task=regression", "training.label_smoothing=0.1"], "label_smoothing.*no meaning"),
        (["data.few_shot=0"], "greater than 0"),
        (["data.splits={test: dev}"], "'train', 'validation' or 'test'"),
    ],
)
def test_what_means_nothing_is_refused_before_data_are_read(settings: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.load("lora_tiny", *settings)


def test_runs_without_these_settings_keep_their_names() -> None:
    def digest(*settings: str) -> str:
        source = Source(requested="a", used="a", origin="path", location="", identity="a")
        return Recipe.load("lora_tiny", *settings).digest(source, source)

    ways = [
        "data.few_shot=3",
        "data.balance=oversample",
        "data.augment={swap: 0.1}",
        "data.splits={test: test}",
        "task={kind: text_classification, class_weights: balanced}",
    ]
    assert len({digest(), *map(digest, ways)}) == 6
    assert digest("task={kind: text_classification, class_weights: none}") == digest()
    plain = Recipe.load("lora_tiny").settings()
    assert not {"few_shot", "balance", "augment", "splits"} & set(plain["data"])
    assert "class_weights" not in plain["task"]


def official(folder: Path) -> Path:
    for seed, split in enumerate(("train", "validation", "test")):
        write(folder / f"{split}.csv", some_rows(30 if split == "train" else 12, seed))
    return folder


def test_the_official_validation_split_can_be_the_one_that_is_scored(tmp_path: Path) -> None:
    plain, scored = load(official(tmp_path)), load(tmp_path, splits={"test": "validation"})
    assert list(scored.test["row"]) == list(plain.validation["row"])
    chosen, learned = set(scored.validation["row"]), set(scored.train["row"])
    assert chosen | learned == set(plain.train["row"]) and not chosen & learned and len(chosen) == 3
    assert any("official splits used: validation as test" in n for n in scored.notes)


def test_splits_may_change_places_and_must_be_there(tmp_path: Path) -> None:
    plain = load(official(tmp_path))
    other = load(tmp_path, splits={"test": "validation", "validation": "test"})
    assert list(other.test["row"]) == list(plain.validation["row"])
    assert list(other.validation["row"]) == list(plain.test["row"])
    (tmp_path / "validation.csv").unlink()
    with pytest.raises(DataError, match=r"data.splits.test: there is no 'validation' split"):
        load(tmp_path, splits={"test": "validation"})
    with pytest.raises(DataError, match="leaves nothing to train on"):
        load(tmp_path, splits={"test": "train"})


def test_a_broken_file_of_a_split_that_is_not_taken_is_not_read(tmp_path: Path) -> None:
    (official(tmp_path) / "test.csv").write_text("nothing,of,use\n1,2,3\n")
    assert load(tmp_path, splits={"test": "validation"}).test.num_rows == 12


RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"


@pytest.mark.parametrize("comparison", ["sst2", "strategies"])
def test_records_still_bear_the_digests_of_their_recipes(comparison: str) -> None:
    paths = sorted((RECORDS / comparison).glob("*/record.json"))
    assert paths
    for path in paths:
        record = read_record(path)
        recipe = Recipe.of(Composition(record.name, record.recipe))
        assert recipe.digest(record.model, record.data) == record.digest, path
