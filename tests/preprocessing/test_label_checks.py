"""Labels that look alike: one class written in two ways, or an empty cell that became a class."""

# ruff: noqa: RUF001

import unicodedata
from pathlib import Path

import pytest

from peftkit.config.recipe import Recipe
from peftkit.planning.plan import plan
from peftkit.preprocessing.label_checks import similar_label_notes

CAFE = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["spam", "spam ", "ham"], "labels 'spam', 'spam ' differ by white space alone"),
        (["very  bad", "very bad"], "differ by white space alone"),
        (["Yes", "no", "yes"], "labels 'Yes', 'yes' differ by case alone"),
        (CAFE, "differ by Unicode form alone"),
        (["ＡＢ", "AB"], "differ by Unicode form alone"),
        (["a\u00a0b", "A b"], "differ by white space, case, Unicode form alone"),
    ],
)
def test_labels_that_differ_in_what_is_hardly_seen_are_told(names: list[str], said: str) -> None:
    (told,) = similar_label_notes(names)
    assert said in told and told.endswith("if they are one class, name it once")


def test_what_cannot_be_seen_is_told_in_escapes() -> None:
    (told,) = similar_label_notes(CAFE)
    assert r"'caf\xe9'" in told and r"'cafe\u0301'" in told


@pytest.mark.parametrize("word", ["nan", "NaN", "null", "None", "n/a", " NA"])
def test_a_word_for_nothing_among_numbers_is_told(word: str) -> None:
    (told,) = similar_label_notes(["0", "1.5", word])
    assert told.startswith(f"label {word!r} among numbers is a class: if it is an empty cell")


def test_labels_that_only_differ_are_left_in_peace() -> None:
    for names in (["pos", "neg"], ["none", "some"], ["nan"], ["1", "10", "-1"], ["B-x", "I-x"], []):
        assert list(similar_label_notes(names)) == []


def test_of_many_groups_the_first_are_told_and_the_others_counted() -> None:
    names = [f"{form}{i}" for i in range(9) for form in ("x", "X")]
    told = list(similar_label_notes(names))
    assert len(told) == 6 and told[-1] == "so do 4 more groups of labels"


def test_a_plan_tells_of_labels_that_look_alike(tmp_path: Path) -> None:
    labels = ["calm", "calm ", "rough"]
    rows = [f"the sea is what it is {i},{labels[i % 3]}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    data = f"data={{kind: files, path: {tmp_path / 'a.csv'}, max_length: 32}}"
    notes = plan(Recipe.load("lora_tiny", data)).notes
    assert "labels 'calm', 'calm ' differ by white space alone" in str(notes)
