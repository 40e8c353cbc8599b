"""Code blocks of the documentation: found on a page, checked, and run in a directory."""

import contextlib
import csv
import doctest
import glob
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from peftkit.cli.main import main
from peftkit.cli.parser import parser, run_parser
from peftkit.comparison.settings import load_comparison
from peftkit.config.recipe import Recipe
from peftkit.data.synthetic import Synthetic

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
OUTPUT = doctest.OutputChecker()
BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    language: str
    code: str
    marker: str
    """The comment above it: `not run: REASON`, `recipe: NAME` (what a YAML block changes), or
    empty."""

    @property
    def runs(self) -> bool:
        """Whether its commands are run, not only checked."""
        return not self.marker.startswith("not run")

    @property
    def file(self) -> str | None:
        """The file that the block shows: `# small.yaml` as its first line."""
        found = re.match(r"# (\S+\.(?:yaml|py))$", self.code.partition("\n")[0])
        return found[1] if found else None

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a console block, without its comment, and the output shown below it."""
        for part in re.split(r"^\$ ", self.code, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield re.sub(r"\s+# .*$", "", command).strip(), output


def blocks_of(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(page.name, language, code, marker) for marker, language, code in found]


def check(block: Block, directory: Path) -> None:
    """Check a block without running it: options exist, recipes are valid, Python compiles."""
    if block.language == "python":
        compile(block.code, block.page, "exec")
    elif block.language == "yaml":
        check_yaml(block, directory)
    elif block.language in ("console", "text"):
        for command, output in block.commands():
            check_command(shlex.split(command), fails=output.startswith("error:"))


def check_yaml(block: Block, directory: Path) -> None:
    """A comparison, a recipe, or settings of the recipe that the marker names."""
    settings = yaml.safe_load(block.code)
    if block.marker.startswith("recipe: "):
        Recipe.load(block.marker.removeprefix("recipe: "), **settings)
    elif block.file is not None:
        path = save(block, directory)
        if "recipe" in settings:
            load_comparison(path)
        elif "plugins" in settings:
            pass  # these are imported where the page runs
        elif "model" in settings or "base" in settings:
            Recipe.load(str(path))
        else:
            raise AssertionError(f"{block.page}: neither a recipe nor a comparison: {settings}")
    else:
        raise AssertionError(
            f"{block.page}: a YAML block names its file or its recipe:\n{settings}"
        )


def save(block: Block, directory: Path) -> Path:
    """The file that a block shows, written to `directory`."""
    assert block.file is not None
    path = directory / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.code)
    return path


def check_command(words: list[str], fails: bool) -> None:
    """Check the options of a command, and the settings of its recipe."""
    words = words[words[0].startswith("PYTHONPATH=") :]
    if words[0] == "make":
        assert set(words[1:]) <= {*TARGETS}, words
    elif words[0] == "peftkit":
        options = parser().parse_args(words[1 : words.index(">") if ">" in words else None])
        if hasattr(options, "recipe") and not fails and "plugins=" not in " ".join(words):
            check_recipe(options.recipe, options.settings)
    elif words[:2] == ["accelerate", "launch"]:
        start = next(i for i, word in enumerate(words) if word.endswith("run.py"))
        named, *settings = run_parser().parse_args(words[start + 1 :]).settings
        check_recipe(named.removeprefix("recipe="), settings)
    else:
        assert words[0] in ("pip", "python", "cd", "git", "vllm"), f"unknown command: {words}"


def check_recipe(name: str, settings: list[str]) -> None:
    """The recipe with its overrides; a file that a user writes is taken to be like `lora_imdb`."""
    own = name.endswith(".yaml") and not (ROOT / name).exists()
    Recipe.load("lora_imdb" if own else name, *settings)


def run(block: Block, directory: Path) -> None:
    """Run a block in `directory`, which is the working directory."""
    if block.language == "python":
        path = save(block, directory) if block.file else directory / "block.py"
        path.write_text(block.code)
        run_command(f"python {path}", "", directory)
    elif block.file is not None:
        save(block, directory)
    elif block.language in ("console", "text"):
        for command, expected in block.commands():
            run_command(command, expected, directory)


def run_command(command: str, expected: str, directory: Path) -> None:
    """Run a command of peftkit in this process, another in its own; compare its output."""
    words = [w for word in shlex.split(command) for w in sorted(glob.glob(word)) or [word]]
    if words[0] == "make":
        return
    if words[:2] in (["peftkit", "train"], ["peftkit", "compare"]):
        words += ["training.threads=1"]  # runs this small only wait for a second thread
    code, output = run_peftkit(words[1:]) if words[0] == "peftkit" else run_shell(command)
    assert code == (2 if expected.startswith("error:") else 0), f"{command}:\n{output[-3000:]}"
    if expected.strip():
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert OUTPUT.check_output(expected, output, flags), f"{command}:\n{output}"
    if words[:2] == ["peftkit", "new"]:
        use_toy_model(directory)


def run_shell(command: str) -> tuple[int, str]:
    """The exit code and the output of a command with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


def run_peftkit(words: list[str]) -> tuple[int, str]:
    """The exit code and the output of a command, which may be redirected to a file."""
    to = words[words.index(">") + 1] if ">" in words else None
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            code = main(words[: words.index(">")] if to else words)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    if to:
        Path(to).write_text(printed.getvalue())
    return code, printed.getvalue() + ("" if code == 0 else errors.getvalue())


def use_toy_model(directory: Path) -> None:
    """Name a random two-layer model in the recipes of `peftkit new`, which name a real one."""
    for path in (directory / "recipes").glob("*.yaml"):
        path.write_text(
            re.sub(r"^model: sent.*$", "model: tiny-bert", path.read_text(), flags=re.M)
        )


def write_reviews(directory: Path) -> None:
    """`reviews.csv`, the file that the documentation uses: two columns, two topics."""
    rows = Synthetic(rows=96)._made()
    with open(directory / "reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([("review", "topic"), *rows])
    with open(directory / "new.csv", "w", newline="") as file:
        csv.writer(file).writerows([("review",), *[(text,) for text, _ in rows[:4]]])
