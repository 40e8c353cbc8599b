"""Combinations: several strategies as a list, and what is refused of such a list."""

import pytest

from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.strategies.base import Strategy
from peftkit.strategies.combination import Combination
from support.toy_models import toy


def test_a_list_is_a_combination_and_says_so_in_the_recipe() -> None:
    recipe = toy("tiny-bert", "strategy=[{kind: dora, r: 2}, bitfit]")
    assert isinstance(recipe.strategy, Combination)
    said = recipe.settings()["strategy"]
    assert [part["kind"] for part in said["parts"]] == ["lora", "bitfit"]
    assert Strategy.parse(said, "strategy") == recipe.strategy
    assert recipe.lr() == min(part.default_lr for part in recipe.strategy.parts)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("[lora]", r"strategy.parts \(override\): should be a list of two strategies or more"),
        ("combination", r"strategy.parts: .* two strategies or more \(got null\) - name one alone"),
        ("[lora, dora]", "PEFT holds one method at a time, not lora and lora - drop one"),
        ("[full, lora]", "'full' is no part of a combination - name it alone"),
        ("[[lora, bitfit], adapter]", "'combination' is no part of a combination"),
        ("[adaptr, lora]", r"strategy.parts.0 \(override\): no strategy is called 'adaptr' - did"),
        ("[lora, {kind: adapter, redction: 4}]", r"strategy.parts.1.redction .* mean 'reduction'"),
        (
            "{kind: dora, variant: pissa}",
            r"strategy.variant .*'dora' implies 'dora' \(got 'pissa'\)",
        ),
    ],
)
def test_a_faulty_combination_is_refused_part_by_part(strategy: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        toy("tiny-bert", f"strategy={strategy}")


def test_all_faults_of_all_parts_come_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        toy("tiny-bert", "strategy=[{kind: lora, rr: 1}, {kind: adapter, redction: 4}]")
    assert "parts.0.rr" in str(caught.value) and "parts.1.redction" in str(caught.value)


def test_a_base_that_cannot_carry_one_part_cannot_carry_the_combination() -> None:
    with pytest.raises(RecipeError, match="'quantize: 4bit' freezes them - use strategy"):
        toy("tiny-bert", "strategy=[lora, {kind: frozen, last: 1}]", "quantize=4bit")


def test_an_alias_stands_for_its_settings_and_others_may_be_added() -> None:
    recipe = Recipe.load("lora_tiny", "strategy=dora", "strategy.r=2")
    assert recipe.strategy == Strategy.parse({"kind": "lora", "variant": "dora", "r": 2}, "s")
