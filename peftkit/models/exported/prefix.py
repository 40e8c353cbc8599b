"""Attaches prefixes to the attention of a plain transformers model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "attention_with_a_prefix"


def attach(model: Any, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Prepend learned keys and values to those of an attention (arXiv:2101.00190)."""
    name = settings["attention"]
    attention = model.get_submodule(name)
    attention.prefix = nn.Parameter(tensors.pop(f"{name}.prefix.states"))
    AttentionInterface.register(ATTENTION, prefixed_attention)
    AttentionMaskInterface.register(ATTENTION, full_mask)
    model.set_attn_implementation(ATTENTION)


def prefixed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention to [P_k; keys] and [P_v; values]; the prefix has no positions."""
    states: Any = module.prefix
    keys, values = states.unsqueeze(1).expand(-1, len(key), -1, -1, -1)
    length = keys.shape[2]
    if attention_mask is not None:
        visible = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (length, 0), value=visible)
    if position_bias is not None:
        position_bias = nn.functional.pad(position_bias, (length, 0))
    key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    kwargs["position_bias"] = position_bias
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def full_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask, also where a kernel's own causal mask would do: it does not allow for a prefix."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
