"""Integrity checks: a trained tensor that did not change, or a frozen one that did, is found."""

from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch

from peftkit.config.recipe import Recipe
from peftkit.records.record import Proof
from peftkit.strategies.base import Strategy
from peftkit.training.integrity import (
    MAY_STAY_UNCHANGED,
    IntegrityCheck,
    fingerprint,
    reason_unchanged,
)
from support.toy_models import load_toy, toy, train


class Broken(Strategy):
    """Base class of the broken strategies below."""

    kind: str  # without a default, nothing is registered
    default_lr: ClassVar[float] = 1e-3
    source: ClassVar[str] = ""

    def adapt(self, model: Any, task: Any) -> Any:
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
        return model


class Forgets(Broken):
    """Trains a tensor that the model never uses."""

    kind: Literal["broken-forgets"]

    def adapt(self, model: Any, task: Any) -> Any:
        model.classifier.forgotten = torch.nn.Parameter(torch.ones(3))
        return super().adapt(model, task)


class Changes(Broken):
    """Changes a frozen weight in every forward pass."""

    kind: Literal["broken-changes"]

    def adapt(self, model: Any, task: Any) -> Any:
        norm = model.bert.embeddings.LayerNorm

        def drift(*_: Any) -> None:
            norm.weight.data.add_(1e-6)

        norm.register_forward_hook(drift)
        return super().adapt(model, task)


def proof_of(strategy: Strategy, warmup: int = 0, steps: int = 5) -> Proof:
    recipe = Recipe.model_validate({**dict(toy("tiny-bert")), "strategy": strategy})
    made = load_toy(recipe)
    check = IntegrityCheck(made.module)
    seen = train(recipe, made, steps=steps)
    return check.verify(seen.master_weights, warmup, SimpleNamespace(global_step=steps))


def test_a_trained_tensor_that_never_moves_is_named() -> None:
    proof = proof_of(Forgets(kind="broken-forgets"))
    assert (proof.status, proof.unmoved) == ("failed", ["classifier.forgotten"])
    assert (proof.moved, proof.frozen_intact) == (2, True)


def test_a_frozen_tensor_that_changes_is_named() -> None:
    proof = proof_of(Changes(kind="broken-changes"))
    assert (proof.status, proof.frozen_intact) == ("failed", False)
    assert proof.changed == ["bert.embeddings.LayerNorm.weight"]


def test_too_few_steps_prove_nothing_but_a_change_is_a_change() -> None:
    assert proof_of(Forgets(kind="broken-forgets"), warmup=3).status == "too short"
    assert proof_of(Changes(kind="broken-changes"), warmup=3).status == "failed"


def test_a_head_that_trains_is_proven() -> None:
    proof = proof_of(Strategy.parse({"kind": "frozen", "last": 0}, "strategy"))
    assert (proof.status, proof.unmoved, proof.changed, proof.moved) == ("proven", [], [], 2)


@pytest.mark.parametrize(
    ("name", "excused"),
    [
        ("bert.encoder.layer.0.attention.self.key.bias", True),
        ("model.layers.0.self_attn.k_proj.bias", True),
        ("distilbert.transformer.layer.1.attention.k_lin.bias", True),
        ("bert.encoder.layer.0.attention.self.query.bias", False),
        ("monkey.bias", False),
        ("key.bias.lora_A.weight", False),
    ],
)
def test_only_key_biases_are_excused(name: str, excused: bool) -> None:
    assert (reason_unchanged(name) is not None) == excused
    assert all(reason for reason in MAY_STAY_UNCHANGED.values())


def test_a_fingerprint_sees_one_bit_and_the_sign_of_zero() -> None:
    ones = torch.ones(3, dtype=torch.bfloat16)
    changed = ones.clone()
    changed.view(torch.int16)[1] ^= 1
    assert fingerprint(ones) == fingerprint(ones.clone()) != fingerprint(changed)
    assert fingerprint(torch.zeros(1)) != fingerprint(-torch.zeros(1))
    assert fingerprint(torch.ones(2, 3).T) == fingerprint(torch.ones(3, 2))
