"""The JSON schema accepts what peftkit accepts, so that editors complete and check recipes."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from peftkit.config.recipe import Recipe
from peftkit.config.schema import recipe_schema
from peftkit.config.training import Training
from peftkit.storage.yaml import load_yaml
from peftkit.strategies.base import Strategy

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    found = recipe_schema()
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path, schema: Draft202012Validator) -> None:
    schema.validate(load_yaml(path.read_text(encoding="utf-8")))


def test_a_resolved_recipe_is_valid(schema: Draft202012Validator) -> None:
    recipe = Recipe.load("lora_tiny", quantize="4bit")
    schema.validate({"name": recipe.name, **recipe.settings()})


@pytest.mark.parametrize(
    "text",
    [
        "strategy: {r: 16}",
        "base: [_imdb, mine]\nstrategy: lora",
        "data: {max_length: 8, fallback: forbid}",
        "training: {lr: auto, evaluate: 5, max_grad_norm: null}",
        "quantize: {kind: 8bit, threshold: 5}",
    ],
)
def test_a_part_of_a_recipe_is_valid_since_a_base_may_hold_the_rest(
    text: str, schema: Draft202012Validator
) -> None:
    schema.validate(load_yaml(text))


@pytest.mark.parametrize(
    "text",
    [
        "modle: x",
        "strategy: {kind: lora, rnk: 3}",
        "strategy: lorra",
        "strategy: {kind: full, r: 3}",
        "training: {seeed: 3}",
        "training: {lr: -1}",
        "training: {gradient_checkpointing: 'yes'}",
        "data: {kind: hub, limit: {tran: 3}}",
        "base: 3",
    ],
)
def test_a_misspelt_key_or_a_wrong_value_is_not_valid(
    text: str, schema: Draft202012Validator
) -> None:
    assert not schema.is_valid(load_yaml(text))


def test_every_setting_and_every_kind_carries_its_documentation() -> None:
    schema: dict[str, Any] = recipe_schema()
    for part in ["model", "data", "task", "strategy", "quantize", "base"]:
        assert schema["properties"][part]["description"], part
    training = schema["$defs"]["Training"]["properties"]
    assert set(training) == set(Training.model_fields)
    assert all(setting["description"] for setting in training.values())
    named = set(schema["properties"]["strategy"]["anyOf"][0]["enum"])
    assert named == {*Strategy.kinds(), *Strategy.all_aliases()}
