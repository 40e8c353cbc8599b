"""The model in this folder, by transformers and torch alone: `python load.py "a text"`.

In Python: `model, tokenizer = load(FOLDER)`, then `model(**tokenizer(texts, truncation=True,
padding=True, return_tensors="pt")).logits`. What to attach where stands in `loading.json`.
"""

import argparse
import hashlib
import json
import logging
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoTokenizer
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

HERE = Path(__file__).resolve().parent
TRAINED = "adapter.safetensors"
PREFIXED = "attention_with_a_prefix"


def load(folder: Path | str = HERE, base: Path | str | None = None) -> tuple[Any, Any]:
    """The model, ready to predict, and its tokenizer.

    `base` is the folder of the base's weights, where this one only refers to them. Raises
    `ValueError` for weights that are not the ones that belong here.
    """
    folder = Path(folder)
    said = json.loads((folder / "loading.json").read_text(encoding="utf-8"))
    check(folder / TRAINED, said["trained"])
    tensors = load_file(folder / TRAINED)
    model, tokenizer = open_base(folder, said, base), open_tokenizer(folder, said["max_length"])
    for name in said["heads"]:  # computed in fp32, whatever the base rests in
        model.get_submodule(name).float().register_forward_pre_hook(in_fp32)
    for piece in said["pieces"]:
        ATTACH[piece["kind"]](model, piece, tensors)
    if "marked" in said:
        prepare = runpy.run_path(str(folder / "marked.py"))["prepare"]
        tokenizer = prepare(model, tokenizer, said, tensors)
    for name in said["heads"]:
        head = f"{name}."
        held = {n.removeprefix(head): tensors.pop(n) for n in list(tensors) if n.startswith(head)}
        model.get_submodule(name).load_state_dict(held)
    if tensors:
        raise ValueError(f"{TRAINED} holds what nothing takes: {', '.join(sorted(tensors))}")
    if said["reads"] == "last":
        read_last(model, said["heads"][-1])
    elif said["ahead"]:
        read_first(model.get_submodule(said["encoder"]), said["ahead"])
    return model.requires_grad_(False), tokenizer


def open_base(folder: Path, said: dict[str, Any], base: Path | str | None) -> Any:
    """The base with a head made by chance."""
    config = AutoConfig.from_pretrained(folder)
    config.use_cache = False
    place = find_base(folder, said["base"], base)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that the head is missing there is no news
    model, seen = getattr(transformers, said["auto_class"]).from_pretrained(
        place,
        config=config,
        dtype=getattr(torch, said["dtype"]),
        use_safetensors=True,
        output_loading_info=True,
    )
    transformers.logging.set_verbosity(level)
    heads = tuple(f"{name}." for name in said["heads"])
    if absent := sorted(n for n in seen["missing_keys"] if not n.startswith(heads)):
        raise ValueError(f"the base's weights in {place} lack {', '.join(absent[:5])}")
    return model.eval()


def find_base(folder: Path, said: dict[str, Any], base: Path | str | None) -> Path:
    """The folder of the base's weights: in here, the given one, or the hub's, each file checked."""
    if said["held"] == "embedded":
        return folder / "base"
    if base is None and said["on_hub"]:
        from huggingface_hub import snapshot_download

        wanted = [*said["files"], "config.json"]
        base = snapshot_download(said["name"], revision=said["revision"], allow_patterns=wanted)
    if base is None:
        raise ValueError(f"the base {said['name']} is not in here - say where: load(base=FOLDER)")
    for name, known in said["files"].items():
        check(Path(base) / name, known)
    return Path(base)


def check(path: Path, sha256: str) -> None:
    """Refuse a file that is not the one that was exported, or referred to."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{path} is not the file that belongs here (sha256 {sha256})")


def open_tokenizer(folder: Path, max_length: int) -> Any:
    """The tokenizer, which pads on the right and cuts where the training did."""
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # for some models AutoTokenizer 5.23 loads their usual class, whatever is named
    plain = named.get("tokenizer_class") == "TokenizersBackend"
    loader: Any = transformers.TokenizersBackend if plain else AutoTokenizer
    tokenizer = loader.from_pretrained(folder)
    tokenizer.padding_side, tokenizer.model_max_length = "right", max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def in_fp32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What enters a head, as fp32."""
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


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
    """Put learned embeddings before each text's (arXiv:2104.08691)."""
    model.prompt = nn.Parameter(tensors.pop("prompt"))
    ahead = len(model.prompt)

    def put(_: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> Any:
        ids = inputs[0] if inputs else given.pop("input_ids")
        texts = model.get_input_embeddings()(ids)
        prompts = model.prompt.to(texts.dtype).expand(len(ids), -1, -1)
        seen = given.pop("attention_mask", torch.ones_like(ids))
        given["attention_mask"] = nn.functional.pad(seen, (ahead, 0), value=1)
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = nn.functional.pad(given["token_type_ids"], (ahead, 0))
        return (), {**given, "inputs_embeds": torch.cat([prompts, texts], dim=1)}

    model.register_forward_pre_hook(put, with_kwargs=True)


ATTACH = {"bottleneck": attach_bottleneck, "prefix": attach_prefix, "prompt": attach_prompt}


def read_first(encoder: nn.Module, ahead: int) -> None:
    """Have the head read a text's first token, not the prompt's."""

    def cut(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0][:, ahead:], *output[1:])
        output.last_hidden_state = output[0][:, ahead:]
        return output

    encoder.register_forward_hook(cut)


def read_last(model: Any, head: str) -> None:
    """Take the logits at each text's last token, wherever padding seems to begin."""
    last, every = list[Tensor](), list[Tensor]()

    def note(_: nn.Module, __: Any, given: dict[str, Any]) -> None:
        seen = given.get("attention_mask")
        seen = torch.ones_like(given["input_ids"]) if seen is None else seen
        last[:] = [(seen * torch.arange(seen.shape[1], device=seen.device)).argmax(dim=1)]

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        every[:] = [output]

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        logits = every.pop()
        output.logits = logits[torch.arange(len(logits), device=logits.device), last.pop()]
        return output

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.get_submodule(head).register_forward_hook(keep)
    model.register_forward_hook(replace)
    for name in ("transformers.modeling_layers", type(model).__module__):
        # it warns that it finds no padding among embeddings, which is found here
        logging.getLogger(name).addFilter(lambda r: "detect padding" not in r.getMessage())


def logits_of(
    model: Any, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> Tensor:
    """The logits of texts, or of pairs of texts, (texts, labels)."""
    batch = tokenizer(texts, pairs, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        found: Tensor = model(**batch.to(model.device)).logits.float()
    return found


def main() -> None:
    """Print the label and the probabilities of each text."""
    options = argparse.ArgumentParser(description="the answers of the model in this folder")
    options.add_argument("texts", nargs="+", help="a text each; of pairs, both, one by one")
    options.add_argument("--base", help="the folder of the base, where this one refers to it")
    asked = options.parse_args()
    model, tokenizer = load(HERE, asked.base)
    both = json.loads((HERE / "loading.json").read_text(encoding="utf-8"))["pairs"]
    parts = (asked.texts[::2], asked.texts[1::2]) if both else (asked.texts, None)
    for text, row in zip(parts[0], logits_of(model, tokenizer, *parts).softmax(-1), strict=True):
        names = model.config.id2label
        chances = "  ".join(f"{names[i]} {float(p):.4f}" for i, p in enumerate(row))
        print(f"{names[int(row.argmax())]}\t{chances}\t{text}")


if __name__ == "__main__":
    main()
