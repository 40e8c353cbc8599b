"""Checks that several adapters can be merged together, and joins them into one `Adapter`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.dequantization import quantization_of, training_precision
from peftkit.merging.inputs import base_folder
from peftkit.merging.mixing import Mix
from peftkit.merging.tensor_names import HEADS, match_names
from peftkit.merging.weight_tying import are_equal
from peftkit.storage.safetensors_files import StoredTensor


def join(
    members: Sequence[Adapter], mix: Mix, onto: str, shards: Mapping[str, Sequence[StoredTensor]]
) -> Adapter:
    """All adapters as one, with the head, class and tokenizer of one of them.

    Raises `RunError` for adapters that cannot be added, and if it is not clear which head to keep.
    """
    base = {tensor.name: tensor for tensors in shards.values() for tensor in tensors}
    members = [without_copies(member, base) for member in members]
    for member in members:
        check_sum(member)
    if onto == "trained":
        check_same_quantization(members)
    check_same_tying(members)
    chosen = adapter_with_head(members, mix)
    layers: dict[str, dict[str, Any]] = {}
    for number, member in enumerate(members):
        for layer, tensors in member.layers.items():
            numbered = {f"{number}.{name}": tensor for name, tensor in tensors.items()}
            layers.setdefault(layer, {}).update(numbered)
    return replace(chosen, layers=layers, shared={}, members=tuple(members), mix=mix)


def without_copies(adapter: Adapter, base: Mapping[str, StoredTensor]) -> Adapter:
    """The adapter without the base's own embeddings, which PEFT saves when they are adapted."""
    names = match_names([*(f"{layer}.weight" for layer in adapter.layers), *adapter.replaced], base)
    kept = {}
    for name, tensor in adapter.replaced.items():
        known = base.get(names.in_checkpoint(name) or "")
        if known is None or known.dtype != tensor.dtype or not are_equal(tensor, known):
            kept[name] = tensor
    return replace(adapter, replaced=kept)


def check_sum(adapter: Adapter) -> None:
    """Raise `RunError` for an adapter that is not a difference to the base's weights."""
    whole = [name for name in adapter.replaced if name.split(".")[0] not in HEADS]
    reasons = [each.check_sum(config) for each, config in adapter.strategies]
    if not adapter.layers or whole:
        names = sorted(whole or adapter.replaced)
        reasons = [f"{names[0] if names else 'nothing'} was trained itself, not a difference to it"]
    if reason := next(filter(None, reasons), None):
        raise RunError(
            f"{adapter.folder}: cannot be added to other adapters: {reason} - merge it alone, or "
            "train LoRA, rsLoRA, AdaLoRA, LoHa, LoKr or VeRA"
        )


def check_same_quantization(members: Sequence[Adapter]) -> None:
    """Raise `RunError` for adapters whose bases were stored differently in training."""
    stored = [storage_in_training(member) for member in members]
    for member, storage in zip(members, stored, strict=True):
        if storage != stored[0]:
            raise RunError(
                f"{member.folder}: was trained on a base stored in {storage}, {members[0].folder} "
                f"on one in {stored[0]} - use --onto original"
            )


def storage_in_training(adapter: Adapter) -> str:
    """How the base was stored in training."""
    quantize = quantization_of(adapter)
    return f"{quantize.to_dict()} of {training_precision(adapter)}" if quantize else "its own type"


def check_same_tying(members: Sequence[Adapter]) -> None:
    """Raise `RunError` for adapters that treat tied embeddings differently."""
    if len({bool(m.config.get("ensure_weight_tying")) for m in members}) > 1:
        raise RunError(
            f"{members[0].folder}: some of the adapters were trained with ensure_weight_tying and "
            "others without - merge them one after the other"
        )


def adapter_with_head(members: Sequence[Adapter], mix: Mix) -> Adapter:
    """The adapter whose head the merged model gets."""
    with_heads = [member for member in members if member.replaced]
    if mix.head_from is not None:
        named = [m for m, name in zip(members, mix.adapters, strict=True) if name == mix.head_from]
        if not named or not named[0].replaced:
            which = ", ".join(n for n, m in zip(mix.adapters, members, strict=True) if m.replaced)
            raise RunError(
                f"--head-from: {mix.head_from} is none of the adapters with a head - name one of "
                f"{which or 'those (there are none)'}"
            )
        return named[0]
    for other in with_heads[1:]:
        if not have_same_head(with_heads[0], other):
            raise RunError(
                f"{other.folder}: has another head than {with_heads[0].folder}, and heads cannot "
                "be added - name the one to keep with --head-from"
            )
    return with_heads[0] if with_heads else members[0]


def have_same_head(one: Adapter, other: Adapter) -> bool:
    """Whether both heads have the same labels and equal tensors."""
    return (
        one.manifest.get("labels") == other.manifest.get("labels")
        and one.replaced.keys() == other.replaced.keys()
        and all(are_equal(tensor, other.replaced[name]) for name, tensor in one.replaced.items())
    )


def common_base(members: Sequence[Adapter], base: Path | str | None, subtract: bool) -> Path:
    """The folder of the base: `base`, or the one that all adapters name.

    Raises `RunError` if they name different ones.
    """
    first = base_folder(members[0], base, subtract)
    for member in members[1:] if base is None else ():
        other = base_folder(member, None, subtract)
        known = [m.manifest.get("base", {}).get("identity") for m in (members[0], member)]
        if other.resolve() != first.resolve() and (known[0] is None or known[0] != known[1]):
            raise RunError(
                f"{member.folder}: was trained on {other}, {members[0].folder} on {first} - merge "
                "adapters of one base; if both are the same, name it with --base"
            )
    return first


def headless_adapters(adapter: Adapter) -> list[str]:
    """The adapters whose heads the merged model does not have."""
    if adapter.mix is None or adapter.mix.head_from is None:
        return []
    named = zip(adapter.mix.adapters, adapter.members, strict=True)
    return [name for name, member in named if member.replaced and name != adapter.mix.head_from]
