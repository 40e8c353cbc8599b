"""The chunked loss over a large vocabulary equals PyTorch's cross-entropy."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from peftkit.models import chunked_loss as module
from peftkit.models.chunked_loss import summed_loss, token_losses

LABELS = torch.tensor([3, -100, 0, 6, 2, 2, 5])


def logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(7, 11, generator=generator)).to(dtype)


@pytest.mark.parametrize("chunk", [11, 30, 10**6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_sum_and_its_gradient_are_cross_entropys(
    chunk: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_NUMBERS", chunk)
    ours, theirs = logits().requires_grad_(), logits().requires_grad_()
    found = summed_loss(ours, LABELS, smoothing)
    expected = cross_entropy(theirs, LABELS, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    (found / 6).backward()
    (expected / 6).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_logits_in_bf16_give_a_loss_in_fp32_and_a_gradient_in_bf16() -> None:
    ours, theirs = (logits(torch.bfloat16).requires_grad_() for _ in range(2))
    found = summed_loss(ours, LABELS, 0.0)
    expected = cross_entropy(theirs.float(), LABELS, reduction="sum")
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    found.backward()
    expected.backward()
    assert ours.grad is not None and ours.grad.dtype == torch.bfloat16
    assert torch.equal(ours.grad, theirs.grad)


def test_a_tokens_loss_is_its_own_and_0_where_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 25)
    found = token_losses(logits(), LABELS)
    torch.testing.assert_close(found, cross_entropy(logits(), LABELS, reduction="none"))
    assert found[1] == 0
    assert len(token_losses(logits()[:0], LABELS[:0])) == 0


def test_no_copy_of_all_logits_in_fp32_is_kept_for_the_gradient() -> None:
    wide = logits(torch.bfloat16).requires_grad_()
    node: Any = summed_loss(wide, LABELS, 0.0).grad_fn
    assert [(t.shape, t.dtype) for t in node.saved_tensors] == [(wide.shape, torch.bfloat16)]
