"""Packed attention: several sequences in one row without padding, each attending to itself only."""

from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

PACKED = "peftkit_packed"
PACKED_SDPA = "peftkit_packed_sdpa"
"""The same with `scaled_dot_product_attention` for all lengths."""
LONGEST_IN_ONE_PRODUCT = 1024
"""Longer sequences use `scaled_dot_product_attention`, which stores no L x L probabilities."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    products: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each of the row's sequences.

    query is (1, heads, tokens, size), key and value likewise with fewer heads for grouped queries;
    `sequence_lengths`, a keyword passed through the model, sums to tokens. Returns (1, tokens,
    heads, size). Consecutive sequences of equal length are computed together, as batched matrix
    products if `products` is set: which form is faster depends on machine and dtype, and is
    measured (training/packing.py).
    """
    lengths: tuple[int, ...] = kwargs["sequence_lengths"]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    causal = bool(kwargs.get("is_causal", getattr(module, "is_causal", False)))
    window = kwargs.get("sliding_window")
    rate = dropout if module.training else 0.0
    outputs, start = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        q, k, v = (
            equal_length_sequences(each, start, count, length) for each in (query, key, value)
        )
        multiplied = products and length <= LONGEST_IN_ONE_PRODUCT and not query.is_cuda
        outputs.append(compute_attention(q, k, v, scale, causal, window, rate, multiplied))
        start += count * length
    return torch.cat(outputs, dim=0).unsqueeze(0), None


def equal_length_sequences(states: Tensor, start: int, count: int, length: int) -> Tensor:
    """`count` sequences of equal length from a packed row: (count, heads, length, size)."""
    heads, size = states.shape[1], states.shape[-1]
    row = states[0, :, start : start + count * length]
    return row.reshape(heads, count, length, size).transpose(0, 1)


def compute_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    dropout: float,
    products: bool,
) -> Tensor:
    """Attention of (count, heads, length, size) sequences, returned as (count * length, heads,
    size); by batched `products`, or else by `scaled_dot_product_attention`."""
    count, heads, length, size = query.shape
    windowed = window is not None and length > window
    if not products:
        mask = visibility_mask(length, causal, window, query.device) if windowed else None
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=causal and not windowed, scale=scale
        )
    else:
        weights = torch.matmul(query * scale, key.transpose(-1, -2))
        if causal or windowed:
            hidden = ~visibility_mask(length, causal, window, query.device)
            weights = weights.masked_fill(hidden, float("-inf"))
        weights = nn.functional.softmax(weights, dim=-1)
        if dropout:
            weights = nn.functional.dropout(weights, dropout)
        mixed = torch.matmul(weights, value)
    return mixed.transpose(1, 2).reshape(count * length, heads, size)


def visibility_mask(length: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """(length, length), true where a query (row) attends to a key (column)."""
    ids = torch.arange(length, device=device)
    distance = ids[:, None] - ids[None, :]
    seen = torch.ones(length, length, dtype=torch.bool, device=device)
    if causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance.abs() < window
    return seen


def no_attention_mask(*_: Any, **__: Any) -> None:
    """No mask: the sequence lengths take its place."""


def register() -> None:
    """Register both forms of packed attention in transformers."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionInterface.register(PACKED_SDPA, partial(packed_attention, products=False))
    for name in (PACKED, PACKED_SDPA):
        AttentionMaskInterface.register(name, no_attention_mask)
