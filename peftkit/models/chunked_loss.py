"""Cross-entropy over a large vocabulary, in chunks of tokens.

Labels of -100 are ignored, as in PyTorch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

CHUNK_NUMBERS = 2**24
"""Logits in fp32 at a time: 64 MiB, and as much for their gradient."""


def summed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The sum of the cross-entropies of logits (tokens, vocabulary): a scalar in fp32, in nats.

    Besides the logits only their gradient is stored, in their own dtype, and never all of them in
    fp32.
    """
    total: Tensor = SummedLoss.apply(logits, labels, smoothing)  # type: ignore[no-untyped-call]
    return total


class SummedLoss(torch.autograd.Function):
    """Computes the gradient together with the loss, chunk by chunk, while the chunk is in fp32."""

    @staticmethod
    def forward(context: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """The sum over all tokens with a label."""
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        wanted = context.needs_input_grad[0]
        gradient = torch.empty_like(logits) if wanted else None
        for chosen in chunks(logits):
            chunk = logits[chosen].detach().float()
            with torch.enable_grad():
                chunk.requires_grad_(wanted)
                loss = cross_entropy(
                    chunk,
                    labels[chosen],
                    reduction="sum",
                    label_smoothing=smoothing,
                )
                if gradient is not None:
                    gradient[chosen] = torch.autograd.grad(loss, chunk)[0].to(logits.dtype)
            total += loss.detach()
        if gradient is not None:
            context.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the logits."""
        (gradient,) = context.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each token in nats, (tokens,) in fp32; 0 for ignored labels."""
    found = [
        cross_entropy(logits[chosen].float(), labels[chosen], reduction="none")
        for chosen in chunks(logits)
    ]
    return torch.cat(found) if found else torch.zeros(0)


def chunks(logits: Tensor) -> Iterator[slice]:
    """Slices of tokens, each with at most `CHUNK_NUMBERS` logits."""
    size = max(1, CHUNK_NUMBERS // max(1, logits.shape[-1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))
