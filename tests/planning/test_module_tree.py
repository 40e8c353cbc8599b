"""The module tree: its totals equal the plan's, equal blocks are folded, no weights are loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.recipe import Recipe
from peftkit.planning.module_tree import Branch, branch_of, lines, module_tree
from peftkit.planning.plan import load_meta_model
from peftkit.strategies.base import Strategy
from support.commands import peftkit
from support.toy_models import toy

SHIPPED = ["sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct"]


def grown(strategy: str = "lora", model: str = "tiny-bert") -> Branch:
    return module_tree(toy(model, f"strategy={strategy}"))


def found(branch: Branch, *path: str) -> Branch:
    """The branch at the end of `path`."""
    for name in path:
        branch = {below.name: below for below in branch.below}[name]
    return branch


WHOLE = [
    kind
    for kind, each in Strategy.kinds().items()
    if not any(field.is_required() for field in each.model_fields.values())
]
"""The kinds that need no settings."""
CELLS = [(strategy, "tiny-bert") for strategy in [*WHOLE, "{kind: frozen, last: 1}"]]
CELLS += [(s, m) for s in ("full", "lora") for m in ("tiny-gpt2", "tiny-albert", "tiny-t5")]


@pytest.mark.parametrize(("strategy", "model"), CELLS)
def test_the_totals_are_the_plans(strategy: str, model: str) -> None:
    module, counted, _ = load_meta_model(toy(model, f"strategy={strategy}"))
    tree = branch_of(model, module, set())
    assert (tree.total, tree.trainable) == (counted.total, counted.trainable)


def test_each_module_says_its_shape_its_count_and_what_of_it_trains() -> None:
    output = [line.strip() for line in lines(grown("{kind: frozen, last: 1}"))]
    assert output[0].startswith("tiny-bert  BertForSequenceClassification  ")
    assert output.count("query  Linear(64x64 + 64)  4,160  frozen") == 1
    assert output.count("query  Linear(64x64 + 64)  4,160  trainable") == 1
    assert output.count("output  BertSelfOutput  4,288  trainable") == 1
    assert "LayerNorm  LayerNorm(64 + 64)  128  frozen" in output
    assert output[-1] == "classifier  Linear(2x64 + 2)  130  trainable"
    depths = [len(line) - len(line.lstrip()) for line in lines(grown())]
    assert depths[:3] == [0, 2, 4] and {depth % 2 for depth in depths} == {0}


def test_blocks_that_are_alike_are_one_branch_and_others_are_not() -> None:
    folded = found(grown("lora"), "bert", "encoder.layer").below
    assert [(each.name, each.repeats) for each in folded] == [("0-1", 2)]
    assert folded[0].total == sum(each.total for each in folded[0].below) * 2
    apart = found(grown("{kind: frozen, last: 1}"), "bert", "encoder.layer").below
    assert [(each.name, each.repeats) for each in apart] == [("0", 1), ("1", 1)]


def test_a_shared_weight_counts_where_it_stands_first() -> None:
    tree = grown("lora", "tiny-t5")
    shared, encoder = found(tree, "transformer", "shared"), found(tree, "transformer", "encoder")
    again = found(encoder, "embed_tokens")
    assert shared.total > 0 and again.total == 0 and again.weights[0].shape
    assert any(line.endswith("shared with an earlier one") for line in lines(tree))


def test_a_head_that_peft_has_copied_counts_once() -> None:
    tree = grown("lora")
    heads = [branch for branch in tree.below if branch.name.startswith("classifier")]
    assert [(head.total, head.trainable) for head in heads] == [(130, 130)]


def test_the_nested_data_say_the_same(tmp_path: Path) -> None:
    nested = grown("lora").nested()
    assert json.loads(json.dumps(nested)) == jsonable(nested)

    def total(node: dict[str, Any]) -> int:
        own = sum(weight["count"] for weight in node["weights"])
        return int(node["repeats"] * (own + sum(total(below) for below in node["below"])))

    assert total(nested) == nested["total"] == grown("lora").total


def jsonable(nested: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(nested, dict):
        return {key: jsonable(value) for key, value in nested.items()}
    return [jsonable(each) for each in nested] if isinstance(nested, (list, tuple)) else nested


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_configurations_need_neither_hub_nor_weights(model: str) -> None:
    tree = module_tree(Recipe.load("lora_imdb", model=model))
    assert tree.name == model
    blocks = [line for line in lines(tree) if " x6  " in line or " x30  " in line]
    assert len(blocks) == 1 and ("0-5 x6" in blocks[0] or "0-29 x30" in blocks[0])


def test_the_command_prints_indented_text_or_json(tmp_path: Path) -> None:
    done = peftkit("show", "lora_tiny", "strategy.r=2", "--tree", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = module_tree(Recipe.load("lora_tiny", "strategy.r=2"))
    assert done.stdout.splitlines() == list(lines(expected))
    asked = peftkit("show", "lora_tiny", "strategy.r=2", "--tree", "--json", cwd=tmp_path)
    assert json.loads(asked.stdout) == jsonable(expected.nested())
