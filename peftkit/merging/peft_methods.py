"""Kinds: for each of PEFT's methods, which folds a layer's parts come to."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from peftkit.merging.adapters import STARTS, Adapter
from peftkit.merging.checkpoint.tensors import Stored
from peftkit.merging.deltas.convolutions import Convolution
from peftkit.merging.deltas.low_rank import (
    Dora,
    Drawn,
    Fold,
    LowRank,
    NewRows,
    Residual,
    Shape,
    Shift,
)
from peftkit.merging.deltas.products import Butterfly, Hadamard, Kronecker, Scales, Turn

Parts = Mapping[str, Stored]
Folds = list[tuple[str, Fold]]
"""Which tensor of the layer ('weight', 'bias'), and what becomes of it."""
TRANSPOSING = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")
"""The architectures, and their layers, whose weights lie as (in, out): transformers' Conv1D."""


def folds_of(adapter: Adapter, module: str, parts: Parts, shape: Shape, model_type: str) -> Folds:
    """What becomes of the tensors of `module`, whose weight has this shape.

    Parts that no fold takes are left over; the plan finds them.
    """
    found: Folds = []
    rest = dict(parts)
    if rows := rest.pop("trainable_tokens_delta", None):
        found.append(("weight", NewRows(rows, token_indices(adapter.config, module))))
    if not rest:
        return found
    build = BUILDERS.get(adapter.kind if adapter.config else "")
    if build is not None:
        found += build(adapter, module, rest, lies_transposed(adapter, module, shape, model_type))
    return found


def lies_transposed(adapter: Adapter, module: str, shape: Shape, model_type: str) -> bool:
    """Whether the layer's weight is (in, out)."""
    if model_type in TRANSPOSING:  # where the setting is wrong for the head, a plain linear layer
        return module.rpartition(".")[2] in CONV1D
    return bool(adapter.config.get("fan_in_fan_out")) and len(shape) == 2


def setting(config: Mapping[str, Any], name: str, pattern: str, module: str) -> float:
    """A layer's own setting, by PEFT 0.21's rule (`get_pattern_key`): the first that matches."""
    for key, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return float(config[name])


def lora(adapter: Adapter, module: str, parts: Parts, transposed: bool) -> Folds:
    """LoRA in its variants, of a linear layer, of embeddings or of a convolution."""
    config = adapter.config
    embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' * embedding}{half}") for half in "AB")
    if a is None or b is None:
        return []
    transposed = transposed or embedding
    r = int(setting(config, "r", "rank_pattern", module))
    alpha = setting(config, "lora_alpha", "alpha_pattern", module)
    scale = alpha / (r**0.5 if config.get("use_rslora") else r)
    magnitude = parts.get("lora_magnitude_vector")
    if len(a.shape) > 2:  # PEFT's DoRA of convolutions is left over
        found: Folds = [("weight", Convolution(a, b, scale))]
    else:
        difference = LowRank(a, b, scale, transposed)
        found = [("weight", Dora(difference, magnitude) if magnitude else difference)]
    start = str(config.get("init_lora_weights")).lower()
    if start in STARTS and not embedding:
        found.insert(0, ("weight", Residual(start, r, scale, transposed)))
    if shift := parts.get("lora_B.bias"):
        found.append(("bias", Shift(shift, scale)))
    return found


def adalora(adapter: Adapter, module: str, parts: Parts, transposed: bool) -> Folds:
    """AdaLoRA: singular values between A and B; PEFT 0.21 divides by the initial rank."""
    config = adapter.config
    if not {"lora_A", "lora_B", "lora_E"} <= parts.keys():
        return []
    first = float(config["init_r"])
    alpha = float(config["lora_alpha"])
    scale = (alpha if alpha > 0 else first) / (first + 1e-5)
    a, b, values = (parts[name] for name in ("lora_A", "lora_B", "lora_E"))
    return [("weight", LowRank(a, b, scale, transposed, between=values))]


def loha(adapter: Adapter, module: str, parts: Parts, _transposed: bool) -> Folds:
    """LoHa, of linear layers."""
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if not set(names) <= parts.keys():
        return []
    a, b, c, d = (parts[name] for name in names)
    return [("weight", Hadamard((a, b), (c, d), lycoris_scale(adapter, module)))]


def lokr(adapter: Adapter, module: str, parts: Parts, _transposed: bool) -> Folds:
    """LoKr, of linear layers: each side whole or decomposed."""
    sides = []
    for side in ("lokr_w1", "lokr_w2"):
        names = [side] if side in parts else [f"{side}_a", f"{side}_b"]
        if not set(names) <= parts.keys():
            return []
        sides.append(tuple(parts[name] for name in names))
    return [("weight", Kronecker(sides[0], sides[1], lycoris_scale(adapter, module)))]


def lycoris_scale(adapter: Adapter, module: str) -> float:
    """alpha / r of a layer of LoHa or LoKr."""
    config = adapter.config
    alpha = setting(config, "alpha", "alpha_pattern", module)
    return alpha / setting(config, "r", "rank_pattern", module)


def oft(adapter: Adapter, _module: str, parts: Parts, _transposed: bool) -> Folds:
    """OFT; the size of its blocks is told by their number of elements."""
    weight, config = parts.get("oft_R"), adapter.config
    if weight is None or len(weight.shape) != 2:
        return []
    size = round((1 + (1 + 8 * weight.shape[1]) ** 0.5) / 2)
    terms = int(config["num_cayley_neumann_terms"]) if config.get("use_cayley_neumann") else None
    radius = float(config["eps"]) if config.get("coft") else None
    return [("weight", Turn(weight, size, bool(config.get("block_share")), terms, radius))]


def boft(_adapter: Adapter, _module: str, parts: Parts, _transposed: bool) -> Folds:
    """BOFT."""
    if not {"boft_R", "boft_s"} <= parts.keys():
        return []
    return [("weight", Butterfly(parts["boft_R"], parts["boft_s"]))]


def ia3(_adapter: Adapter, _module: str, parts: Parts, transposed: bool) -> Folds:
    """IA3: what enters a feed-forward layer is scaled, or what leaves another, with its bias."""
    factors = parts.get("ia3_l")
    if factors is None or len(factors.shape) != 2:
        return []
    enters = factors.shape[0] == 1
    found: Folds = [("weight", Scales(factors, int(enters != transposed)))]
    return found if enters else [*found, ("bias?", Scales(factors, 0))]


def vera(adapter: Adapter, _module: str, parts: Parts, transposed: bool) -> Folds:
    """VeRA: factors around projections that all layers share, saved or drawn again."""
    if not {"vera_lambda_b", "vera_lambda_d"} <= parts.keys():
        return []
    b, d = parts["vera_lambda_b"], parts["vera_lambda_d"]
    first, second = projections(adapter)
    return [("weight", LowRank(first, second, 1.0, transposed, between=d, behind=b, shared=True))]


def projections(adapter: Adapter) -> tuple[Stored | Drawn, Stored | Drawn]:
    """A and B, large enough for every layer."""
    if {"vera_A", "vera_B"} <= adapter.shared.keys():
        return adapter.shared["vera_A"], adapter.shared["vera_B"]
    r, key = int(adapter.config["r"]), int(adapter.config["projection_prng_key"])
    wide, narrow = adapter.config["largest"]
    shapes = ((r, narrow), (wide, r))
    return Drawn(key, shapes, 0), Drawn(key, shapes, 1)


def token_indices(config: Mapping[str, Any], module: str) -> tuple[int, ...]:
    """The places of the trained rows of an embedding."""
    said = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(said, Mapping):
        said = next((value for key, value in said.items() if module.endswith(key)), [])
    return tuple(int(index) for index in said)


BUILDERS: dict[str, Callable[[Adapter, str, Parts, bool], Folds]] = {
    "LORA": lora,
    "ADALORA": adalora,
    "LOHA": loha,
    "LOKR": lokr,
    "OFT": oft,
    "BOFT": boft,
    "IA3": ia3,
    "VERA": vera,
}
