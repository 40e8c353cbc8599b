"""Composition: bases, overrides and YAML 1.2 become one mapping that knows who set what."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from peftkit.config.composition import Composition, compose, parse_overrides, recipe_names
from peftkit.errors import RecipeError
from peftkit.storage.yaml import dump_yaml, load_yaml, summarize_error


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> Path:
    path = Path("recipes") / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def composed(name: str, *overrides: str) -> Composition:
    return compose(name, parse_overrides(overrides))


def refused(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        composed(name, *overrides)
    return str(raised.value)


LORA = "strategy: {kind: lora, r: 8, dropout: 0.1}\n"


@pytest.mark.parametrize(
    ("override", "strategy"),
    [
        ("strategy.r=16", {"kind": "lora", "r": 16, "dropout": 0.1}),
        ("strategy={r: 16}", {"kind": "lora", "r": 16, "dropout": 0.1}),
        ("strategy=lora", {"kind": "lora", "r": 8, "dropout": 0.1}),
        ("strategy=full", {"kind": "full"}),
        ("strategy={kind: full}", {"kind": "full"}),
        ("strategy.kind=full", {"kind": "full"}),
        ("strategy={kind: adapter, r: 2}", {"kind": "adapter", "r": 2}),
        ("strategy={r: 4, x: [q, v]}", {"kind": "lora", "r": 4, "dropout": 0.1, "x": ["q", "v"]}),
        ("strategy=", None),
    ],
)
def test_mappings_merge_key_by_key_and_another_kind_replaces_whole(
    override: str, strategy: object
) -> None:
    write("a", LORA)
    assert composed("a", override).settings["strategy"] == strategy


def test_a_bare_word_in_the_file_is_a_kind_that_settings_can_be_added_to() -> None:
    write("a", "task: text_classification\n")
    result = composed("a", "task.metric=f1")
    assert result.settings == {"task": {"kind": "text_classification", "metric": "f1"}}
    assert result.sources == {"task": "recipes/a.yaml", "task.metric": "command line"}


def test_lists_replace_and_are_never_joined() -> None:
    write("a", "x: {labels: [a, b], y: 1}\n")
    write("b", "base: a\nx: {labels: [c]}\n")
    assert composed("b").settings == {"x": {"labels": ["c"], "y": 1}}


def test_of_several_bases_the_later_one_wins_and_the_file_itself_last() -> None:
    write("one", "a: 1\nb: 1\nc: 1\n")
    write("two", "b: 2\nc: 2\n")
    write("all", "base: [one, two]\nc: 3\n")
    result = composed("all")
    assert result.settings == {"a": 1, "b": 2, "c": 3}
    files = ["recipes/one.yaml", "recipes/two.yaml", "recipes/all.yaml"]
    assert list(result.sources.values()) == files


def test_a_base_may_be_met_twice_and_may_have_bases() -> None:
    write("root", "a: 1\nb: 1\n")
    write("left", "base: root\na: 2\n")
    write("right", "base: root\nb: 3\n")
    write("both", "base: [left, right]\n")
    assert composed("both").settings == {"a": 1, "b": 3}


def test_a_base_is_looked_up_beside_the_file_that_names_it() -> None:
    write("root", "a: 1\n")
    write("mine", "base: root\n").rename("recipes/mine.yaml")
    assert composed(str(Path("recipes/mine.yaml").resolve())).settings == {"a": 1}
    write("shipped", "base: _tiny\n")
    assert composed("shipped").settings["model"] == "tiny-bert"


def test_bases_in_a_circle_are_named() -> None:
    write("a", "base: b\n")
    write("b", "base: [a]\n")
    said = "base: is circular: recipes/a.yaml -> recipes/b.yaml -> recipes/a.yaml - remove"
    assert refused("a").startswith(said)


def test_a_missing_base_says_which_file_wants_it() -> None:
    write("_imdb", "a: 1\n")
    write("a", "base: _imbd\n")
    said = refused("a")
    assert said.startswith("recipes/a.yaml: base: no recipe is called '_imbd' in recipes or")
    assert said.endswith("did you mean '_imdb'?")


@pytest.mark.parametrize("base", ["3", "{a: 1}", "[x, 3]"])
def test_a_base_that_is_no_name_is_refused(base: str) -> None:
    write("x", "a: 1\n")
    write("a", f"base: {base}\n")
    assert "recipes/a.yaml: base: should be a recipe's name or a list of names (got" in refused("a")


def test_a_misspelt_recipe_is_told_the_nearest_that_can_run() -> None:
    write("lora_mine", "a: 1\n")
    write("_lora_mime", "a: 1\n")
    said = "no recipe is called 'lora_mime' in recipes or among the shipped ones"
    assert refused("lora_mime") == f"{said} - did you mean 'lora_mine'?"
    assert refused("lora_imbd").endswith("did you mean 'lora_imdb'?")


def test_a_recipe_that_is_a_folder_or_a_missing_file_says_what_is_there() -> None:
    write("lora", "a: 1\n")
    Path("runs/lora-1").mkdir(parents=True)
    assert refused("runs/lora-1") == "the recipe 'runs/lora-1' is a directory - name a YAML file"
    Path("runs/lora-1/recipe.yaml").write_text("a: 1\n")
    assert refused("runs/lora-1").endswith("name the file in it: runs/lora-1/recipe.yaml")
    assert refused("runs").startswith("the recipe 'runs' is a directory")
    assert refused("recipes/lorra.yaml").endswith("did you mean 'lora.yaml'?")
    assert "there is no recipe file 'x/y.yaml' here" in refused("x/y.yaml")
    assert "has no name - choose from" in refused("")


def test_a_folder_of_the_same_name_does_not_hide_a_recipe() -> None:
    write("lora", "a: 1\n")
    Path("lora").mkdir()
    assert composed("lora").settings == {"a": 1}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a: 1\nb: {c: 2, c: 3}\n", "not a recipe (line 2, column 11: the key 'c' is set twice)"),
        (b"a: 1\nb: 2\na: 3\n", "is not a recipe (line 3, column 1: the key 'a' is set twice)"),
        (b"a: [1\n", "is not a recipe (line 2, column 1: expected ',' or ']'"),
        (b"a: !!python/object:os.system x\n", "could not determine a constructor"),
        (b"\xff\xfe\x00", "is not UTF-8 (byte 0) - save it as UTF-8"),
        (b"a: \x00\x01", "is not a recipe (unacceptable character"),
        (b"- a\n", "should be a mapping such as 'model: ...' (got ['a'])"),
        (b"word\n", "should be a mapping such as 'model: ...' (got 'word')"),
        (b"a: " + b"[" * 5000, "is not a recipe ("),
    ],
    ids=["twice", "twice-top", "open", "tag", "binary", "control", "list", "word", "deep"],
)
def test_a_file_that_is_no_recipe_is_named_with_the_line(content: bytes, what: str) -> None:
    write("a", "").write_bytes(content)
    said = refused("a")
    assert said.startswith("recipes/a.yaml: ") and what in said and "\n" not in said


def test_an_empty_file_a_comment_and_a_byte_order_mark_are_no_trouble() -> None:
    write("a", "")
    write("b", "# nothing\n")
    write("c", "\ufeffmodel: x\n")
    assert composed("a").settings == composed("b").settings == {}
    assert composed("c").settings == {"model": "x"}


def test_a_file_that_cannot_be_read_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    write("a", "a: 1\n")
    monkeypatch.setattr(Path, "read_text", forbidden)
    assert refused("a") == "recipes/a.yaml: cannot be read (Permission denied) - check it"


def test_faults_of_the_command_line_come_all_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        parse_overrides(["lr", "=3", "a..b=1", "x=[1", "fine=1"])
    places = [fault.where for fault in raised.value.faults]
    assert places == ["lr", "=3", "a..b=1", "x (command line)"]


def test_the_source_of_a_value_is_its_own_or_the_nearest_above_or_below() -> None:
    write("a", "strategy: {kind: lora, r: 8}\ndata: files\n")
    result = composed("a", "strategy.r=16")
    assert result.source_of("strategy.r") == "command line"
    assert result.source_of("strategy") == "recipes/a.yaml"
    assert result.source_of("data.path") == "recipes/a.yaml"
    assert result.source_of("strategy.rr") is result.source_of("training") is None


def test_what_another_kind_replaced_is_no_source_any_more() -> None:
    write("a", LORA)
    result = composed("a", "strategy=full")
    assert result.sources == {"strategy.kind": "command line"}


def test_recipes_of_ones_own_come_beside_the_shipped_ones_and_before_them() -> None:
    write("lora_imdb", "a: 1\n")
    write("_base", "a: 1\n")
    names = recipe_names()
    assert names["lora_imdb"] == Path("recipes/lora_imdb.yaml")
    assert "full_imdb" in names and "_base" not in names and list(names) == sorted(names)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[no, yes, on, off, y, n]", ["no", "yes", "on", "off", "y", "n"]),
        ("[true, False, NULL, ~]", [True, False, None, None]),
        ("[1e-4, 1.5, .5, 1., -2, +3]", [1e-4, 1.5, 0.5, 1.0, -2, 3]),
        ("[012, 0o17, 0x1F]", [12, 15, 31]),
        ("[2026-11-22, 12:30:00, 1_000]", ["2026-11-22", "12:30:00", "1_000"]),
        ("[.inf, -.INF]", [float("inf"), float("-inf")]),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("1.5.2", "1.5.2"),
        ("1e", "1e"),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
    ],
)
def test_yaml_is_read_as_version_1_2(text: str, value: object) -> None:
    read = load_yaml(text)
    assert read == value and repr(read) == repr(value)


@pytest.mark.parametrize("word", ["no", "1e-4", "012", "0o17", "null", "2026-11-22", "1:30", "~"])
def test_a_word_that_looks_like_something_else_is_quoted_when_written(word: str) -> None:
    text = dump_yaml({"labels": [word]})
    assert load_yaml(text) == yaml.safe_load(text) == {"labels": [word]}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"[-+]?[0-9.eExo_:-]{1,8}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_whatever_is_written_is_read_as_the_same(value: object) -> None:
    assert load_yaml(dump_yaml(value)) == value


LETTERS = st.dictionaries(st.sampled_from("abcd"), st.integers())


@given(LETTERS, LETTERS)
def test_merging_is_what_updating_a_dictionary_is_and_knows_its_sources(
    first: dict[str, int], second: dict[str, int]
) -> None:
    result = Composition("x")
    result.merge({"x": first}, "first")
    result.merge({"x": second}, "second")
    assert result.settings["x"] == {**first, **second}
    for key in result.settings["x"]:
        assert result.source_of(f"x.{key}") == ("second" if key in second else "first")


def test_what_pyyaml_says_fits_on_a_line() -> None:
    with pytest.raises(yaml.YAMLError) as raised:
        load_yaml("a: b: c")
    assert summarize_error(raised.value) == "line 1, column 5: mapping values are not allowed here"
