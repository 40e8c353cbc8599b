"""The structure of the package: layers, sizes of files and functions, docstrings."""

import ast
import importlib.util
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import python

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "peftkit"
FILES = sorted(PACKAGE.rglob("*.py"))


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import: not those in functions or under TYPE_CHECKING."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from top_level(node.orelse)
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            for inner in (getattr(node, part, []) for part in ("body", "orelse", "finalbody")):
                yield from top_level(inner)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(node: Function) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_import_contracts_are_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_top_level_has_few_files_and_no_package_is_large() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 12
    sizes = Counter(path.parent for path in FILES if path.name != "__init__.py")
    large = {name_of(folder): size for folder, size in sizes.items() if size > 18}
    assert set(large) <= {"strategies"}, "one file a method; other packages are split by subject"


HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes", "evaluate"}
DECLARING = ("config", "strategies", "tasks", "data", "metrics", "hub", "storage", "registry")
"""The packages that a faulty recipe or `peftkit list` imports."""
DECLARATIONS = [p for p in FILES if p.relative_to(PACKAGE).parts[0].split(".")[0] in DECLARING]


@pytest.mark.parametrize("path", DECLARATIONS, ids=name_of)
def test_declarations_import_no_heavy_library_at_their_top(path: Path) -> None:
    for node in top_level(tree_of(path).body):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & HEAVY
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in HEAVY


def test_a_module_first_on_the_path_shadows_no_other(tmp_path: Path) -> None:
    top = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    names = sorted(top - {"__init__"})
    code = (
        "import importlib.util, sys\n"
        f"print(*[n for n in {names!r} if n in sys.stdlib_module_names "
        "or importlib.util.find_spec(n)])"
    )
    done = python("-I", "-c", code, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["datasets", "evaluate", "logging", "types", "utils"])
def test_names_that_shadow_others_or_mean_nothing_are_not_used(name: str) -> None:
    assert not [path for path in FILES if path.stem == name]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for node in functions(tree_of(path)):
        assert length(node) <= 60, f"{node.name} has {length(node)} lines"


def test_most_functions_are_short() -> None:
    lengths = [length(node) for path in FILES for node in functions(tree_of(path))]
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=20)[-1] <= 40


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a module needs a docstring"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner in (tree, *(each for each in classes if not each.name.startswith("_"))):
        for node in owner.body:
            if isinstance(node, (ast.ClassDef, Function)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} needs a docstring"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_first_line_of_a_module_is_one_sentence(path: Path) -> None:
    first = (ast.get_docstring(tree_of(path)) or "").splitlines()[0]
    assert first.endswith("."), first


def test_importing_peftkit_or_a_faulty_recipe_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys, peftkit\n"
        "assert not {'torch', 'pydantic'} & set(sys.modules)\n"
        "try: peftkit.Recipe.load('lora_imdb', 'strategy.r=0')\n"
        "except peftkit.RecipeError: pass\n"
        "assert not {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
    )
    assert python("-c", code, cwd=tmp_path).stderr == ""


def test_the_standard_library_is_known_to_the_check() -> None:
    assert "types" in sys.stdlib_module_names and importlib.util.find_spec("datasets")
