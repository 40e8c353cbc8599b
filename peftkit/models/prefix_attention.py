"""Prefix tuning: trained keys and values before those of each attention module.

PEFT passes them as a cache instead: transformers 5.23 drops that under gradient checkpointing and
has none for DistilBERT and for classifiers with a decoder, and it shifts positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peftkit.models.architectures import key_layers, query_layers
from peftkit.models.bottleneck import keep

PREFIXED = "peftkit_prefixed"
SPREAD = 0.02
"""Standard deviation of the initial keys and values that are trained directly."""
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim")
"""Names of the size of an attention head in different architectures."""


class Prefix(nn.Module):
    """The prefix of one attention module, trained directly."""

    def __init__(self, tokens: int, heads: int, size: int, placed: dict[str, Any]) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.empty(2, heads, tokens, size, **placed))
        nn.init.normal_(self.states, std=SPREAD)

    def forward(self) -> Tensor:
        """Keys and values (2, heads, tokens, size)."""
        return self.states


class Trunk(nn.Module):
    """The part that the reparametrized prefixes of all attention modules share."""

    def __init__(self, tokens: int, width: int, hidden: int, placed: dict[str, Any]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, width, **placed))
        nn.init.normal_(self.embedding)
        self.narrow = nn.Linear(width, hidden, **placed)

    def forward(self) -> Tensor:
        """A hidden state for each virtual token, (tokens, hidden)."""
        return torch.tanh(self.narrow(self.embedding))


class ReparametrizedPrefix(nn.Module):
    """The prefix of one attention module as the output of a network: its part of the last linear
    layer."""

    def __init__(self, trunk: Trunk, heads: int, size: int, placed: dict[str, Any]) -> None:
        super().__init__()
        self.trunk, self.heads, self.size = trunk, heads, size
        self.wide = nn.Linear(trunk.narrow.out_features, 2 * heads * size, **placed)

    def forward(self) -> Tensor:
        """Keys and values (2, heads, tokens, size)."""
        states: Tensor = self.wide(self.trunk())
        return states.view(-1, 2, self.heads, self.size).permute(1, 2, 0, 3)


def attach_prefixes(
    model: PreTrainedModel, tokens: int, hidden: int | None, reparametrized: bool
) -> None:
    """Attach a prefix to every attention module of `model`, cross-attention included."""
    AttentionInterface.register(PREFIXED, prefixed_attention)
    AttentionMaskInterface.register(PREFIXED, whole_mask)
    model.set_attn_implementation(PREFIXED)
    wanted_by = "strategy=prefix"
    trunk: Trunk | None = None
    queries = set(query_layers(model, wanted_by))
    for name in key_layers(model, wanted_by):
        layer, attention = (model.get_submodule(n) for n in (name, name.rpartition(".")[0]))
        # a quantized weight has no floating dtype of its own, so the model's is used
        placed = {"device": next(layer.parameters()).device, "dtype": model.dtype}
        size = next(int(getattr(attention, n)) for n in HEAD_SIZES if hasattr(attention, n))
        heads = width_of(layer) // (3 if name in queries else 1) // size
        if not reparametrized:
            keep(attention, "prefix", Prefix(tokens, heads, size, placed))
            continue
        width = model.config.hidden_size
        trunk = trunk or Trunk(tokens, width, hidden or width, placed)
        keep(attention, "prefix", ReparametrizedPrefix(trunk, heads, size, placed))


def width_of(layer: nn.Module) -> int:
    """The output features of a linear layer."""
    return int(getattr(layer, "out_features", 0) or layer.nf)  # type: ignore[arg-type]


def states_of(model: nn.Module) -> dict[str, Tensor]:
    """The keys and values of every prefix, by the names of those trained directly."""
    return {
        f"{name}.states": module().detach()
        for name, module in model.named_modules()
        if isinstance(module, (Prefix, ReparametrizedPrefix))
    }


def prefixed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention to [P_k; keys] and [P_v; values] (He et al. 2022, arXiv:2110.04366, equation 5).

    query is (examples, heads, tokens, size); key and value likewise, with fewer heads for grouped
    queries. A prefix has no position: T5 adds no bias to it, and it is inside every window.
    """
    states = module.prefix()  # type: ignore[operator]
    keys, values = states.unsqueeze(1).expand(-1, len(key), -1, -1, -1)
    tokens = keys.shape[2]
    if attention_mask is not None:
        seen = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (tokens, 0), value=seen)
    elif kwargs.get("is_causal", getattr(module, "is_causal", False)) and query.shape[2] > 1:
        raise ValueError("causal attention with a prefix needs a mask, and there is none")
    if position_bias is not None:
        position_bias = nn.functional.pad(position_bias, (tokens, 0))
    return sdpa_attention_forward(
        module,
        query,
        torch.cat([keys, key], dim=2),
        torch.cat([values, value], dim=2),
        attention_mask,
        position_bias=position_bias,
        **kwargs,
    )


def whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask, also where it would leave a causal one to the kernel, which would align
    the first query with the first of all keys, prefix included."""
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask
