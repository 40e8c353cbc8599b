"""The model in this folder, by transformers and torch alone: `python load.py "a text"`.

In Python: `model, tokenizer = load()`, then `logits_of(model, tokenizer, texts)`, or for a language
model `generate(model, tokenizer, texts)` of `generate.py`.
`loading.json` lists what is attached to which module.
"""

import argparse
import hashlib
import json
import logging
import runpy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

HERE = Path(__file__).resolve().parent
TRAINED = "adapter.safetensors"


def load(folder: Path | str = HERE, base: Path | str | None = None) -> tuple[Any, Any]:
    """The model, ready to predict, and its tokenizer.

    `base` is the folder of the base's weights, where this one only refers to them. Raises
    `ValueError` for weights that are not the ones that belong here.
    """
    folder = Path(folder)
    settings = json.loads((folder / "loading.json").read_text(encoding="utf-8"))
    check(folder / TRAINED, settings["trained"])
    tensors = load_file(folder / TRAINED)
    model, tokenizer = (
        open_base(folder, settings, base),
        open_tokenizer(folder, settings["max_length"]),
    )
    if "added" in settings:
        add_tokens(model, tokenizer, settings["added"], tensors)
    for name in settings["heads"]:  # computed in fp32, whatever dtype the base is stored in
        model.get_submodule(name).float().register_forward_pre_hook(in_fp32)
    for module in settings["modules"]:
        beside(module["code"])["attach"](model, module["settings"], tensors)
    if "marked" in settings:
        encode_text = beside("special_token_text")["encode_text"]
        tokenizer = beside("marked")["prepare"](model, tokenizer, settings, encode_text)
    for name in settings["heads"]:
        head = f"{name}."
        held = {n.removeprefix(head): tensors.pop(n) for n in list(tensors) if n.startswith(head)}
        model.get_submodule(name).load_state_dict(held)
    if tensors:
        raise ValueError(f"{TRAINED} holds what nothing takes: {', '.join(sorted(tensors))}")
    if settings["reads"] == "last":
        read_last(model, settings["heads"][-1])
    elif settings["ahead"]:
        read_first(model.get_submodule(settings["encoder"]), settings["ahead"])
    return model.requires_grad_(False), tokenizer


@cache
def beside(name: str) -> dict[str, Any]:
    """What another file of code in this folder has."""
    return runpy.run_path(str(HERE / f"{name}.py"))


def open_base(folder: Path, settings: dict[str, Any], base: Path | str | None) -> Any:
    """The base with a head made by chance."""
    config = AutoConfig.from_pretrained(folder)
    config.use_cache = "prompts" in settings  # for generation
    generating = {}
    if "prompts" in settings:
        generating["generation_config"] = GenerationConfig.from_pretrained(folder)
    place = find_base(folder, settings["base"], base)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that the head is missing there is no news
    model, seen = getattr(transformers, settings["auto_class"]).from_pretrained(
        place,
        config=config,
        dtype=getattr(torch, settings["dtype"]),
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # the base may have a head of its own, of other labels
        output_loading_info=True,
        **generating,
    )
    transformers.logging.set_verbosity(level)
    heads = tuple(f"{name}." for name in settings["heads"])
    unlike = [name for name, *_ in seen["mismatched_keys"]]
    if absent := sorted(n for n in [*seen["missing_keys"], *unlike] if not n.startswith(heads)):
        raise ValueError(f"the base's weights in {place} lack {', '.join(absent[:5])}")
    return model.eval()


def find_base(folder: Path, source: dict[str, Any], base: Path | str | None) -> Path:
    """The folder of the base's weights: in here, the given one, or the hub's, each file checked."""
    if source["held"] == "embedded":
        return folder / "base"
    if base is None and source["on_hub"]:
        from huggingface_hub import snapshot_download

        wanted = [*source["files"], "config.json"]
        base = snapshot_download(source["name"], revision=source["revision"], allow_patterns=wanted)
    if base is None:
        raise ValueError(f"the base {source['name']} is not in here - say where: load(base=FOLDER)")
    for name, known in source["files"].items():
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
    tokenizer.split_special_tokens = False  # see special_token_text.py
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def add_tokens(
    model: Any, tokenizer: Any, known: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Give tokenizer and model the tokens that the training added.

    Raises `ValueError` where the tokenizer is another one than the training's.
    """
    tokenizer.add_tokens(known["tokens"], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(known["tokens"]) != known["ids"]:
        raise ValueError("the tokenizer in this folder is not the one that the model was made for")
    if model.get_input_embeddings().weight.shape[0] < known["rows"]:
        model.resize_token_embeddings(known["rows"], mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[known["ids"]] = tensors.pop("added")
        if "added_output" in tensors:
            model.get_output_embeddings().weight[known["ids"]] = tensors.pop("added_output")


def in_fp32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What enters a head, as fp32."""
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def read_first(encoder: nn.Module, num_virtual_tokens: int) -> None:
    """Have the head read a text's first token, not the prompt's."""

    def cut(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0][:, num_virtual_tokens:], *output[1:])
        output.last_hidden_state = output[0][:, num_virtual_tokens:]
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
    """The logits of texts, or of pairs of texts, (texts, labels); what is spelled as a special
    token in a text is text there."""
    columns = [texts] if pairs is None else [texts, pairs]
    how: dict[str, Any] = {"truncation": True, "padding": True, "return_tensors": "pt"}
    if hasattr(tokenizer, "plain"):  # one of marked texts
        batch = tokenizer(texts)
    else:
        batch = beside("special_token_text")["encode_text"](tokenizer, *map(list, columns), **how)
    with torch.no_grad():
        found: Tensor = model(**batch.to(model.device)).logits.float()
    return found


def main() -> None:
    """Print what the model says of each text."""
    options = argparse.ArgumentParser(description="the answers of the model in this folder")
    options.add_argument("texts", nargs="+", help="a text each; of pairs, both, one by one")
    options.add_argument("--base", help="the folder of the base, where this one refers to it")
    arguments = options.parse_args()
    settings = json.loads((HERE / "loading.json").read_text(encoding="utf-8"))
    model, tokenizer = load(HERE, arguments.base)
    if "prompts" in settings:
        print(*beside("generate")["generate"](model, tokenizer, arguments.texts), sep="\n")
    else:
        print_labels(model, tokenizer, arguments.texts, settings["pairs"])


def print_labels(model: Any, tokenizer: Any, texts: Sequence[str], both: bool) -> None:
    """Print the label and the probabilities of each text, or pair of texts."""
    parts = (texts[::2], texts[1::2]) if both else (texts, None)
    for text, row in zip(parts[0], logits_of(model, tokenizer, *parts).softmax(-1), strict=True):
        names = model.config.id2label
        chances = "  ".join(f"{names[i]} {float(p):.4f}" for i, p in enumerate(row))
        print(f"{names[int(row.argmax())]}\t{chances}\t{text}")


if __name__ == "__main__":
    main()
