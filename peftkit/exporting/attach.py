"""What was trained beside the base's weights, attached to the model in this folder.

`load.py` calls what `ATTACH` has for each kind of piece that stands in `loading.json`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PREFIXED = "attention_with_a_prefix"


class KroneckerLinear(nn.Module):
    """x W + b, W the sum over i of A_i (x) (s_i t_i) (Compacter, arXiv:2106.04647, equation 6)."""

    def __init__(self, rule: nn.Parameter, s: Tensor, t: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.rule = rule
        self.s, self.t, self.bias = nn.Parameter(s), nn.Parameter(t), nn.Parameter(bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., size in) to (..., size out)."""
        products = torch.einsum("iab,icr,ird->acbd", self.rule, self.s, self.t)
        return states @ products.reshape(-1, len(self.bias)) + self.bias


def layer_of(name: str, rule: nn.Parameter | None, tensors: dict[str, Tensor]) -> nn.Module:
    """One of a bottleneck's two layers."""
    if rule is not None:
        s, t, bias = (tensors.pop(f"{name}.{part}") for part in ("s", "t", "bias"))
        return KroneckerLinear(rule, s, t, bias)
    weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def attach_bottleneck(model: Any, piece: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Add `scale` times up(f(down(x))) to a layer's output, x that output or another's input."""
    name, rule = piece["name"], None
    if "rule" in piece:  # all bottlenecks share it
        shared = f"{piece['rule']}.matrices"
        if shared in tensors:
            model.kronecker_rule = nn.Parameter(tensors.pop(shared))
        rule = model.kronecker_rule
    down, up = (layer_of(f"{name}.{part}", rule, tensors) for part in (0, 2))
    bottleneck = nn.Sequential(down, ACT2FN[piece["activation"]], up)
    owner, _, key = name.rpartition(".")
    model.get_submodule(owner).add_module(key, bottleneck)
    entering: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entering[:] = [inputs[0]]

    def add(_: nn.Module, __: Any, output: Tensor) -> Any:
        added: Tensor = bottleneck(entering.pop() if piece["beside"] else output)
        return output + piece["scale"] * added

    if piece["beside"]:
        model.get_submodule(piece["beside"]).register_forward_pre_hook(take)
    model.get_submodule(piece["behind"]).register_forward_hook(add)


def attach_prefix(model: Any, piece: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put learned keys and values before an attention's own (arXiv:2101.00190)."""
    name = piece["attention"]
    attention = model.get_submodule(name)
    attention.prefix = nn.Parameter(tensors.pop(f"{name}.prefix.states"))
    AttentionInterface.register(PREFIXED, prefixed_attention)
    AttentionMaskInterface.register(PREFIXED, whole_mask)
    model.set_attn_implementation(PREFIXED)


def prefixed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention to [P_k; keys] and [P_v; values]; a prefix has no position."""
    states: Any = module.prefix
    keys, values = states.unsqueeze(1).expand(-1, len(key), -1, -1, -1)
    tokens = keys.shape[2]
    if attention_mask is not None:
        seen = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (tokens, 0), value=seen)
    if position_bias is not None:
        position_bias = nn.functional.pad(position_bias, (tokens, 0))
    key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    kwargs["position_bias"] = position_bias
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask, also where a causal one could be left to the kernel, which knows no prefix."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


def attach_prompt(model: Any, _: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put learned embeddings before each text's, once a text where it is continued
    (arXiv:2104.08691)."""
    model.prompt = nn.Parameter(tensors.pop("prompt"))
    ahead, read = len(model.prompt), list[int]()

    def put(_: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> Any:
        ids = inputs[0] if inputs else given.pop("input_ids")
        texts = model.get_input_embeddings()(ids)
        cache = given.get("past_key_values")
        begins = cache is None or not cache.get_seq_length()
        prompts = model.prompt.to(texts.dtype).expand(len(ids), -1, -1)
        seen = given.pop("attention_mask", torch.ones_like(ids) if begins else None)
        given["attention_mask"] = (
            seen if seen is None else nn.functional.pad(seen, (ahead, 0), value=1)
        )
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = nn.functional.pad(given["token_type_ids"], (ahead, 0))
        if given.get("position_ids") is not None:
            given["position_ids"] = moved(given["position_ids"], ahead, begins)
        read[:] = [ids.shape[1]]
        return (), {
            **given,
            "inputs_embeds": torch.cat([prompts, texts], dim=1) if begins else texts,
        }

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        if output.logits.ndim == 3:  # of tokens, which the prompt's are none of
            output.logits = output.logits[:, -read.pop() :]
        return output

    model.register_forward_pre_hook(put, with_kwargs=True)
    model.register_forward_hook(keep)


def moved(positions: Tensor, ahead: int, begins: bool) -> Tensor:
    """The positions of tokens behind a prompt, and the prompt's own where it stands there now."""
    behind = positions + ahead
    first = torch.arange(ahead, device=positions.device).expand(len(positions), -1)
    return torch.cat([first, behind], dim=1) if begins else behind


ATTACH = {"bottleneck": attach_bottleneck, "prefix": attach_prefix, "prompt": attach_prompt}
