"""The shape of the house: imports point one way, files and functions are short, names are free."""

import ast
import importlib.util
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import python

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "peftkit"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    ["hub_kernels", "openmp"],
    ["peftkit"],
    ["errors", "stand_ins"],
    ["yaml12"],
    ["registry"],
    ["compose"],
    ["words"],
    ["score_tokenizers"],
    ["language_counts", "resampling", "messages", "special_tokens", "text_scores"],
    ["conversations"],
    ["metrics"],
    ["generation"],
    ["tallies", "marks", "pieces", "tagging_schemes"],
    ["correlation", "label_sets", "sources", "texts", "chat_templates", "prompting", "language"],
    ["chat_fields", "chat_tokens", "embedded", "look_alikes"],
    ["rewriting"],
    ["data"],
    ["answers", "layouts", "tagged_rows"],
    ["architectures", "layers", "parameters", "quantization"],
    ["bottleneck", "tasks"],
    ["strategies"],
    ["recipe"],
    ["disk", "plain_json"],
    ["lengths", "measured", "record", "tokenizing"],
    ["products", "run_folder"],
    ["artefact", "card", "encoding", "world"],
    ["attention", "batching", "kronecker", "prefixes", "token_losses", "vocabulary"],
    ["dropout", "heads", "reader"],
    ["model"],
    ["live"],
    ["evaluation", "generating"],
    ["probe", "proof", "checkpoints", "optimizer"],
    ["engine"],
    ["display"],
    ["verdicts"],
    ["untrained"],
    ["judging"],
    ["recording"],
    ["trainer_arguments"],
    ["training"],
    ["columns", "curves", "planning", "predicting"],
    ["guessing"],
    ["starting"],
    ["chatting"],
    ["reload", "scored_files", "shared_base", "merging"],
    ["attempt", "exporting"],
    ["runner"],
    ["listing", "offers", "schema", "tables", "tree", "launching", "arguments"],
    ["drawing", "svg_process"],
    ["reporting"],
    ["comparing"],
    ["verbs"],
    ["cli"],
    ["run", "__main__"],
]
"""A module imports at its top only from earlier layers. Bodies of functions may import later ones,
and names for type checkers alone do not count."""
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def module_of(path: Path) -> str:
    """The module or package directly below peftkit that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return "peftkit" if first == "__init__.py" else first.removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules of peftkit that are imported when the file is."""
    for node in top_level(tree.body):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = below if node.module == "peftkit" else [node.module or ""]
        else:
            continue
        yield from (n.split(".")[1] if "." in n else n for n in names if n.startswith("peftkit"))


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import: not what stands in functions or under TYPE_CHECKING."""
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


def test_every_module_has_its_place_in_the_order() -> None:
    assert {module_of(path) for path in FILES} <= set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = module_of(path)
    for name in imports(tree_of(path)):
        if name != own:
            assert RANKS[name] < RANKS[own], f"{own} imports {name}, which comes later"


@pytest.mark.parametrize("family", ["strategies", "tasks"])
def test_members_of_a_family_never_import_each_other(family: str) -> None:
    members = {path.stem for path in (PACKAGE / family).glob("*.py")} - {"__init__"}
    for path in (PACKAGE / family).glob("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                assert parts[:2] != ["peftkit", family] or len(parts) == 2, (path, node.module)
                imported = {alias.name for alias in node.names}
                assert parts != ["peftkit", family] or not imported & members


HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes", "evaluate"}
DECLARATIONS = [p for p in FILES if RANKS.get(module_of(p), 99) <= RANKS["recipe"]]


@pytest.mark.parametrize("path", DECLARATIONS, ids=name_of)
def test_declarations_import_no_heavy_library_at_their_top(path: Path) -> None:
    for node in top_level(tree_of(path).body):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & HEAVY
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in HEAVY


def test_a_module_first_on_the_path_shadows_no_other(tmp_path: Path) -> None:
    names = sorted({module_of(path) for path in FILES} - {"peftkit", "__main__"})
    code = (
        "import importlib.util, sys\n"
        f"print(*[n for n in {names!r} if n in sys.stdlib_module_names "
        "or importlib.util.find_spec(n)])"
    )
    done = python("-I", "-c", code, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["datasets", "evaluate", "logging", "types", "utils"])
def test_names_that_would_shadow_or_say_nothing_are_not_used(name: str) -> None:
    assert not [path for path in FILES if path.stem == name]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for node in functions(tree_of(path)):
        assert length(node) <= 60, f"{node.name} has {length(node)} lines"


def test_the_median_function_is_short() -> None:
    lengths = [length(node) for path in FILES for node in functions(tree_of(path))]
    assert statistics.median(lengths) <= 12


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "the module says what it is"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner in (tree, *(each for each in classes if not each.name.startswith("_"))):
        for node in owner.body:
            if isinstance(node, (ast.ClassDef, Function)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} says what it gives"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_first_line_of_a_module_is_one_sentence(path: Path) -> None:
    first = (ast.get_docstring(tree_of(path)) or "").splitlines()[0]
    assert first.endswith("."), first


def test_importing_peftkit_or_a_faulty_recipe_leaves_torch_alone(tmp_path: Path) -> None:
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
