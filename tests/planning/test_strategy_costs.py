"""Strategy costs: parameters and artifact sizes without weights, equal to those of a saved
artifact."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedModel

from peftkit.errors import RecipeError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import meta_model
from peftkit.planning.strategy_costs import StrategyCost, cost_rows, strategy_costs, task_for
from peftkit.runtime.distributed import resolve_precision
from peftkit.strategies.base import Strategy
from support.commands import peftkit
from support.toy_models import NAMES, load_toy, toy

HERE = resolve_precision("auto")


@cache
def costs_of(model: str = "tiny-bert") -> dict[str, StrategyCost]:
    return {cost.strategy: cost for cost in strategy_costs(model)}


def test_every_strategy_and_alias_is_there_with_numbers_or_a_reason() -> None:
    assert list(costs_of()) == sorted({*Strategy.kinds(), *Strategy.all_aliases()})
    for cost in costs_of().values():
        numbers = (cost.trainable, cost.share, cost.artifact_bytes, cost.lr)
        assert (None in numbers) == (cost.reason is not None), cost
        assert set(numbers) == {None} or None not in numbers


def test_the_counts_are_the_plans_and_the_rate_is_the_strategys_own() -> None:
    for name in ("full", "linear_probe", "lora", "dora", "adapter"):
        recipe = toy("tiny-bert", f"strategy={name}", *ORDINARY.get(name, ()))
        counted = meta_model(recipe, find_model("tiny-bert").location, NAMES)[1]
        cost = costs_of()[name]
        assert (cost.trainable, cost.share) == (counted.trainable, counted.share)
        assert cost.lr == recipe.lr()


ORDINARY = {"lora": ("strategy.r=8",)}
"""Resets the settings of the toy recipes."""
SAVED = ["full", "linear_probe", "lora", "pissa", "ia3", "vera", "prompt", "adapter", "layernorm"]


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-gemma3"])
def test_the_artifact_has_the_size_that_was_told(name: str, model: str, tmp_path: Path) -> None:
    recipe = toy(model, f"strategy={name}", *ORDINARY.get(name, ()))
    recipe.strategy.save(load_toy(recipe, HERE).module, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert costs_of(model)[name].artifact_bytes == pytest.approx(size, rel=0.05)


def test_what_does_not_fit_says_why_and_what_to_do() -> None:
    found = costs_of()
    assert found["adapter_drop"].reason == (
        "strategy.drop: the model has 2 blocks (got 3) - use at most 1"
    )
    assert "a list of two strategies or more" in str(found["combination"].reason)
    rows = {row["strategy"]: row for row in cost_rows(list(found.values()))}
    assert rows["adapter_drop"]["trainable"] == rows["adapter_drop"]["artifact"] == "-"
    assert rows["full"]["share"] == "100.000%" and rows["full"]["does not fit"] == ""


def test_no_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    found = {
        cost.strategy: cost for cost in strategy_costs("sentence-transformers/all-MiniLM-L6-v2")
    }
    assert (found["full"].trainable, found["linear_probe"].trainable) == (22_713_986, 770)


def test_a_model_that_no_task_has_a_head_for_is_refused() -> None:
    with pytest.raises(RecipeError, match="'vit' has a head for none of the tasks"):
        task_for(AutoConfig.for_model("vit"), "some/vit")


def test_the_command_says_what_it_counts_and_refuses_other_families(tmp_path: Path) -> None:
    done = peftkit("list", "strategies", "--for", "tiny-bert", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(costs_of())
    assert rows[[row[0] for row in rows].index("lora")][1] == f"{costs_of()['lora'].trainable:,}"
    assert "with default settings, and a new head for two labels" in done.stderr
    asked = peftkit("list", "strategies", "--for", "tiny-bert", "--json", cwd=tmp_path)
    assert json.loads(asked.stdout) == [vars(cost) for cost in costs_of().values()]
    for family in ((), ("tasks",)):
        wrong = peftkit("list", *family, "--for", "tiny-bert", cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.endswith("run: peftkit list strategies --for tiny-bert\n")
