"""Settings as they are typed: nothing of a value is lost, and what would be is told how to type."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.cli.parser import parser
from peftkit.comparison.settings import load_comparison
from peftkit.config.composition import parse_overrides
from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError


def typed(text: str) -> Any:
    """The value that `key=TEXT` sets."""
    return parse_overrides([f"key={text}"])[0].value


def files(*settings: str) -> Any:
    """The data settings of a recipe that reads files."""
    return Recipe.load("lora_tiny", "data={kind: files, path: x}", *settings).data


@pytest.mark.parametrize(
    "text",
    [
        *("in box #2", "#2", "a: b", "key:", "*star", "&and", "!now", "%d", "@home", "`x`", "| a"),
        *("> b", "- c", "? d", " lead", "trail ", "two\nlines", "yes", "no", "2026-11-28", "12:30"),
        *("a 'b' c", 'say "x"', "C:\\new", "a]b", "}", ", x", "1_000", "0b1", "1e", "née"),
    ],
)
def test_text_is_taken_as_it_is_typed(text: str) -> None:
    assert typed(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("16", 16), (" 16", 16), ("1e-4", 1e-4), ("true", True), ("null", None), ("", None)),
        *(("[q, v]", ["q", "v"]), ("{r: 4}", {"r": 4}), ("'16'", "16"), ('"a #b"', "a #b")),
        ("[no, '#x', 1]", ["no", "#x", 1]),
    ],
)
def test_numbers_lists_mappings_and_quoted_texts_are_read_as_yaml(text: str, value: Any) -> None:
    assert typed(text) == value and type(typed(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["[a, b] # c", "'x' #y", "[a", "{a: b", "'tis", "'a' b", "[*a]", "[&a b]", "[!a b]", "[a #b]"],
)
def test_yaml_of_which_a_part_would_be_lost_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        typed(text)
    (fault,) = caught.value.faults
    assert f"{text!r} is not YAML (" in fault.what
    (as_text,) = shlex.split(fault.what.rpartition(" type ")[2])
    assert parse_overrides([as_text])[0].value == text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_what_is_typed_is_taken_whole_or_not_at_all(text: str) -> None:
    try:
        value = typed(text)
    except RecipeError:
        return
    if isinstance(value, str) and not text.strip().startswith(("'", '"')):
        assert value == text


@pytest.mark.parametrize("word", ["1999", "007", "1e3", "1.50", "0x1F", "True", "null", "-3"])
def test_a_setting_that_is_text_takes_the_spelling_of_a_number_or_boolean(word: str) -> None:
    assert files(f"data.path={word}").path == word
    assert files(f"data={{path: {word}}}").path == word
    assert files(f"data.columns={{question: {word}}}").columns == {"question": word}


def test_a_recipes_file_is_read_so_too_and_what_replaced_a_number_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: lora_tiny\ndata: {kind: files, path: 0042, max_length: 16}\n")
    recipe = Recipe.load(str(path))
    assert (recipe.data.to_dict()["path"], recipe.data.max_length) == ("0042", 16)
    assert Recipe.load(str(path), "data.path=new").data.to_dict()["path"] == "new"


def test_lists_of_texts_take_spellings_and_numbers_stay_numbers() -> None:
    task = Recipe.load("lora_tiny", "task={kind: text_generation, attributes: [01, yes, x]}").task
    assert task.to_dict()["attributes"] == ["01", "yes", "x"]
    assert Recipe.load("lora_tiny", "training.lr=1e-3").training.lr == 0.001


def test_numbers_for_text_in_python_are_told_to_be_quoted() -> None:
    with pytest.raises(RecipeError, match=r"valid string \(got 7\) - put it in quotes"):
        Recipe.load("lora_tiny", data={"kind": "files", "path": 7})


def test_a_comparisons_settings_are_typed_alike(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("recipe: lora_tiny\nstrategies: [lora]\nseeds: 2\n")
    found = load_comparison(file, ["data.path=0815", "data.kind=files", "data.text=a #b"])
    data = found.variants[0].recipe.data.to_dict()
    assert (data["kind"], data["path"], data["text"]) == ("files", "0815", "a #b")


@pytest.mark.parametrize("kind", ["data.kind=files", "data=files"])
def test_a_kind_counts_before_the_settings_of_its_part_wherever_it_is_typed(kind: str) -> None:
    for settings in (["data.path=x", "data.seed=3", kind], ["data.path=x", kind, "data.seed=3"]):
        data = Recipe.load("lora_tiny", *settings).data
        assert (data.kind, data.to_dict()["path"], data.seed) == ("files", "x", 3)


def test_a_setting_that_the_kind_behind_it_lacks_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"strategy\.r \(override\): no such setting"):
        Recipe.load("lora_tiny", "strategy.r=2", "strategy=full")


def test_of_two_kinds_and_of_a_mapping_and_a_kind_the_later_counts() -> None:
    both = ["data.kind=files", "data.seed=3", "data.kind=synthetic"]
    assert Recipe.load("lora_tiny", *both).data.kind == "synthetic"
    mapping = "data={kind: files, path: x}"
    assert Recipe.load("lora_tiny", mapping, "data.seed=3", "data=synthetic").data.seed == 3
    found = Recipe.load("lora_tiny", "data.rows=9", "data=synthetic", mapping).data
    assert found.kind == "files"


@pytest.mark.parametrize("weights", ["-1,1", "-0.5,1", "-.5,-2", "-1e-3,1", "1,-1"])
def test_weights_below_zero_are_values_and_no_options(weights: str) -> None:
    for asked in (["--weights", weights], [f"--weights={weights}"]):
        options = parser().parse_args(["merge", "a", "b", "--to", "c", *asked])
        assert options.weights == [float(each) for each in weights.split(",")]


def test_values_that_begin_with_a_dash_are_answered_with_how_to_write_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for line, hint in {
        "chat run --system -brief": "--system=VALUE",
        "merge a --to b --base -x": "--base=VALUE",
        "predict run -strange": "at the end, after --",
    }.items():
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(line.split())
        assert ended.value.code == 2
        assert hint in capsys.readouterr().err
    assert parser().parse_args(["chat", "run", "--system=-brief"]).system == "-brief"
