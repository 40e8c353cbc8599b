"""What the README says to type works, as it stands there."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peftkit.config.recipe import Recipe
from peftkit.data.synthetic import Synthetic

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(<!--[^\n]*-->\n)?```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language, those marked as not run left out."""
    return [code for comment, found, code in BLOCKS if found == language and not comment]


def commands(containing: str) -> list[str]:
    """The commands of the one console block that holds `containing`, without their comments."""
    [block] = [block for block in blocks("console") if containing in block]
    lines = [line.partition(" #")[0].strip() for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def shell(command: str, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `command` as a user in `folder` would, with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.network
def test_the_own_data_story_runs_from_a_csv_to_a_prediction(tmp_path: Path) -> None:
    rows = Synthetic(rows=96)._made()
    with open(tmp_path / "reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([("review", "topic"), *rows])
    *before, predicted = [shell(command, tmp_path) for command in commands("peftkit new")]
    assert "text_classification" in before[0].stdout
    assert "trainable" in before[2].stdout
    assert predicted.stdout.split("\t")[0] in ("sport", "food")


def test_the_recipe_commands_run_and_those_that_train_are_right(tmp_path: Path) -> None:
    for command in commands("peftkit schema"):
        # a real run of these is `make demo`; here the recipe must be right
        checked = re.sub(
            r"^accelerate launch \S+ recipe=|^peftkit train ", "peftkit show ", command
        )
        assert shell(checked, tmp_path).stderr == ""
    assert (tmp_path / "recipe.schema.json").stat().st_size > 1000


def test_the_errors_in_the_readme_are_the_errors_that_come(tmp_path: Path) -> None:
    for block in blocks("text"):
        first, _, expected = block.partition("\n")
        assert shell(first.removeprefix("$ "), tmp_path, code=2).stderr == expected


@pytest.mark.slow
def test_the_comparison_in_the_readme_goes_to_its_page(tmp_path: Path) -> None:
    [text] = [block for block in blocks("yaml") if "small.yaml" in block]
    (tmp_path / "small.yaml").write_text(text)
    typed = commands("peftkit compare small.yaml")
    # runs this small only wait for a second thread, the more the busier the machine
    planned, compared = [shell(f"{line} training.threads=1", tmp_path) for line in typed]
    assert "lora_r-8_4bit\t2 runs" in planned.stdout
    assert "With 2 seeds it cannot be shown" in compared.stdout
    assert (tmp_path / "runs" / "small" / "report" / "report.html").is_file()


def test_the_prompting_of_the_readme_is_a_recipes() -> None:
    [text] = [block for block in blocks("yaml") if "prompting" in block]
    recipe = Recipe.load("lora_imdb", **yaml.safe_load(text))
    assert recipe.task.zero_shot.faults(("neg", "pos"), ["text", "label"]) == []  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    [code] = blocks("python")
    (tmp_path / "readme.py").write_text(code)
    lines = shell(f"{sys.executable} readme.py", tmp_path).stdout.splitlines()
    assert lines[-2] in ("sport", "food")
    assert len(lines[-1].split()) == 2 and {*lines[-1].split()} <= {"sport", "food"}


def test_every_dependency_has_its_reason() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional")[0]
    declared = re.findall(r'^    "([A-Za-z_-]+)[<>=]', project, re.M)
    table = README.partition("## Dependencies")[2]
    tests_only = {
        "hypothesis",
        "mypy",
        "playwright",
        "pytest",
        "pytest-xdist",
        "ruff",
        "tensorboard",
    }
    missing = [name for name in declared if name not in table and name not in tests_only]
    assert [
        name for name in missing if not name.startswith("types-") and name != "jsonschema"
    ] == []


def test_the_readme_lists_every_strategy_with_its_own_learning_rate() -> None:
    from peftkit.strategies.base import Strategy

    table = README[README.index("<!-- table: kinds -->") :].partition("\n\n#")[0]
    said = dict(re.findall(r"^\| `([\w+]+)` \|[^|]*\| (\S*) ?\|", table, flags=re.M))
    names = {*Strategy.kinds(), *Strategy.all_aliases()}
    assert said.keys() == names
    for name in names - {"combination", "peft"}:  # which need settings
        assert float(said[name]) == Strategy.parse(name, "strategy").default_lr, name
