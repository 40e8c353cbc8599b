"""Earlier names of settings, kinds, options and arguments: read for one version, with a note."""

from pathlib import Path

import pytest

import peftkit
from peftkit.comparison.settings import load_comparison
from peftkit.config.earlier_names import KINDS, SETTINGS, current_names, earlier_names
from peftkit.config.recipe import Recipe
from peftkit.deprecation import EarlierNameWarning
from support.commands import peftkit as command
from support.commands import run_py


@pytest.mark.parametrize(("old", "new"), KINDS["task"].items())
def test_a_kind_by_its_earlier_name_is_the_kind(old: str, new: str) -> None:
    with pytest.warns(EarlierNameWarning, match=f"task={old} is now called task={new} - rename it"):
        assert current_names({"task": {"kind": old}}) == {"task": {"kind": new}}


def test_every_renamed_setting_is_one_of_a_kind_that_there_is() -> None:
    from peftkit.data.base import Data
    from peftkit.models.quantization import Quantization
    from peftkit.strategies.base import Strategy
    from peftkit.tasks.base import Task

    families = {"data": Data, "quantize": Quantization, "strategy": Strategy, "task": Task}
    for path, family in families.items():
        known = {name for kind in family.kinds().values() for name in kind.model_fields}
        assert set(SETTINGS[path].values()) <= known and not set(SETTINGS[path]) & known, path


def test_overrides_and_files_are_read_by_either_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: lora_tiny\ntraining: {clip: 2, warmup: 0.5}\ntask: classification\n")
    with pytest.warns(EarlierNameWarning) as seen:
        recipe = Recipe.load(str(file), "training.max_grad_norm=3")
    assert (recipe.training.max_grad_norm, recipe.training.warmup_ratio) == (3, 0.5)
    assert sorted(str(each.message).partition(" ")[0] for each in seen) == [
        "task=classification", "training.clip", "training.warmup",
    ]  # fmt: skip


def test_settings_of_lists_and_of_settings_are_read_too() -> None:
    parts = [{"kind": "prefix", "tokens": 2}, "lora"]
    now = [{"kind": "prefix", "num_virtual_tokens": 2}, "lora"]
    before = {"strategy": parts, "task": {"prompting": {"shots": 2}, "generate": {"beams": 3}}}
    after = {
        "strategy": now,
        "task": {"zero_shot": {"few_shot_examples": 2}, "generate": {"num_beams": 3}},
    }
    assert current_names(before, warn=False) == after
    assert earlier_names(after) == before
    assert current_names(after, warn=True) == after, "no warning"


@pytest.mark.parametrize("recipe", ["lora_imdb", "lora_gsm8k", "lora_samsum", "qlora_imdb"])
def test_settings_go_to_earlier_names_and_back(recipe: str) -> None:
    settings = Recipe.load(recipe).settings()
    assert current_names(earlier_names(settings), warn=False) == settings


def test_a_comparison_is_read_by_earlier_names(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("recipe: lora_tiny\nstrategies: [{kind: prompt, tokens: 4}]\nseeds: 2\n")
    with pytest.warns(EarlierNameWarning, match="strategy.tokens is now called"):
        variants = load_comparison(file).variants
    assert variants[0].recipe.strategy.num_virtual_tokens == 4  # type: ignore[attr-defined]


def test_the_command_line_notes_each_earlier_name_in_one_line(tmp_path: Path) -> None:
    done = command("show", "lora_tiny", "training.clip=2", "task=classification", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "note: training.clip is now called training.max_grad_norm - rename it",
        "note: task=classification is now called task=text_classification - rename it",
    ]
    assert "training.max_grad_norm\t2.0\tcommand line" in done.stdout


@pytest.mark.parametrize(
    ("old", "new"), [("--again", "--rerun"), ("--inexact", "--allow-inexact-resume")]
)
def test_options_are_read_by_their_earlier_names(old: str, new: str, tmp_path: Path) -> None:
    done = run_py("recipe=nothing", old, cwd=tmp_path)
    assert done.returncode == 2 and "no recipe is called 'nothing'" in done.stderr
    assert f"note: {old} is now called {new} - rename it\n" in done.stderr


def test_arguments_of_functions_are_read_by_their_earlier_names(tmp_path: Path) -> None:
    recipe = Recipe.load("lora_tiny", "data.path=nowhere", "data.kind=files")
    renamed = pytest.warns(EarlierNameWarning, match=r"train\(again=...\) is now called rerun=...")
    with renamed, pytest.raises(peftkit.DataError):
        peftkit.train(recipe, tmp_path, again=True)  # type: ignore[call-arg]
