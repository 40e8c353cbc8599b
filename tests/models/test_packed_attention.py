"""Packed attention: packed rows give the same results as padded ones, without leaks between
texts."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from peftkit.hub.toy_models import TINY
from peftkit.loading.model import LoadedModel
from peftkit.models import packed_attention
from peftkit.models.layouts import ARCHITECTURES
from support.toy_models import call, load_toy, rows, toy

MODEL_OF = {model_type: name for name, (model_type, _) in TINY.items()}
TESTED = [MODEL_OF[kind] for kind, e in ARCHITECTURES.items() if kind in MODEL_OF and e.packs]
ALIKE = {"xlm-roberta": "roberta"}
"""Architectures without a tiny model, and the one whose entry they share."""
every_model = pytest.mark.parametrize("model", TESTED)


def both(model: str, *overrides: str) -> tuple[LoadedModel, LoadedModel]:
    """One model twice, with the same weights: packed and padded, every weight trainable."""
    settings = ("strategy=full", *overrides)
    packed = load_toy(toy(model, *settings))
    padded = load_toy(toy(model, "training.packing=off", *settings))
    assert packed.batcher.packed and not padded.batcher.packed
    return packed, padded


def texts(model: str) -> list[dict[str, Sequence[int]]]:
    """Texts of different lengths, two of them equal, unsorted; longer than a window of 8."""
    examples = [rows(model)["train"][index] for index in range(12)]
    assert len({len(example["input_ids"]) for example in examples}) > 4
    assert max(len(example["input_ids"]) for example in examples) > 8
    return [*examples, examples[3]]


def with_gradients(made: LoadedModel, model: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of every weight for an arbitrary loss."""
    found = call(made, texts(model))
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    (found * weights).sum().backward()
    named = made.module.named_parameters()
    return found.detach(), {n: p.grad for n, p in named if p.grad is not None}


def test_every_architecture_that_is_packed_is_tested() -> None:
    for kind, entry in ARCHITECTURES.items():
        assert not entry.packs or kind in MODEL_OF or ARCHITECTURES[ALIKE[kind]] == entry


@every_model
def test_packed_equals_padded_in_logits_and_gradients(model: str) -> None:
    packed, padded = both(model)
    logits, gradients = with_gradients(packed, model)
    padded_logits, padded_gradients = with_gradients(padded, model)
    torch.testing.assert_close(logits, padded_logits, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == padded_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], atol=2e-5, rtol=1e-4, msg=name)


@every_model
@torch.no_grad()
def test_packed_equals_one_text_at_a_time(model: str) -> None:
    packed, padded = both(model)
    together = call(packed, texts(model))
    for made in (packed, padded):
        alone = torch.cat([call(made, [text]) for text in texts(model)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@every_model
@torch.no_grad()
def test_the_order_in_a_packed_row_does_not_matter(model: str) -> None:
    packed, _ = both(model)
    forwards, backwards = call(packed, texts(model)), call(packed, texts(model)[::-1])
    torch.testing.assert_close(forwards, backwards.flip(0), atol=1e-5, rtol=1e-5)


@every_model
def test_long_sequences_go_another_way_to_the_same_result(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, padded = both(model)
    expected, expected_gradients = with_gradients(padded, model)
    monkeypatch.setattr(packed_attention, "LONGEST_IN_ONE_PRODUCT", 10)
    ways: list[int] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: object, **keywords: object) -> Tensor:
        ways.append(1)
        return real(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    found, gradients = with_gradients(packed, model)
    assert ways
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected_gradients[name], atol=2e-5, rtol=1e-4, msg=name
        )


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta", "tiny-distilbert", "tiny-gpt2"])
@pytest.mark.parametrize("limit", [0, 1024])
def test_dropout_changes_training_and_not_evaluation(
    model: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "LONGEST_IN_ONE_PRODUCT", limit)
    packed, padded = both(model, "training.dropout=0.3")
    packed.module.train()
    first, second = call(packed, texts(model)), call(packed, texts(model))
    assert first.shape == second.shape == (13, 2)
    assert not torch.equal(first, second)
    packed.module.eval()
    torch.testing.assert_close(
        call(packed, texts(model)), call(padded, texts(model)), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_bf16_packs_to_what_bf16_pads() -> None:
    recipes = (toy("tiny-bert", "strategy=full", f"training.packing={p}") for p in ("auto", "off"))
    packed, padded = (call(load_toy(r, "bf16"), texts("tiny-bert")).float() for r in recipes)
    torch.testing.assert_close(packed, padded, atol=5e-2, rtol=5e-2)


def test_a_window_hides_what_is_further_back() -> None:
    seen = packed_attention.visibility_mask(5, causal=True, window=2, device=torch.device("cpu"))
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_the_window_is_used() -> None:
    """transformers passes tiny-mistral's window to every layer."""
    packed, _ = both("tiny-mistral")
    windows: list[object] = []
    real = packed_attention.compute_attention

    def watched(*arguments: object) -> Tensor:
        windows.append(arguments[5])
        return real(*arguments)  # type: ignore[arg-type]

    packed_attention.compute_attention = watched  # type: ignore[assignment]
    try:
        call(packed, texts("tiny-mistral"))
    finally:
        packed_attention.compute_attention = real
    assert set(windows) == {8}
