"""Several: adapters that are merged together, as one; or why they cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.errors import RunError
from peftkit.merging.adapters import STARTS, Adapter
from peftkit.merging.bases import quantization_of, trained_precision
from peftkit.merging.checkpoint.naming import OLD_HEADS, naming
from peftkit.merging.checkpoint.tensors import Stored
from peftkit.merging.inputs import base_folder
from peftkit.merging.mixing import Mix
from peftkit.merging.tying import same

MULTIPLYING = {
    "OFT": "turns the weights",
    "BOFT": "turns the weights",
    "IA3": "multiplies the weights",
    "TRAINABLE_TOKENS": "puts rows in the place of the embeddings'",
}
"""PEFT's methods whose outcome is no difference that was learned, and what they do instead."""


def together(
    members: Sequence[Adapter], mix: Mix, onto: str, shards: Mapping[str, Sequence[Stored]]
) -> Adapter:
    """All of them as one adapter, whose head, class and tokenizer are those of one of them.

    Raises `RunError` for what cannot be added, and for heads of which none was chosen.
    """
    there = {tensor.name: tensor for tensors in shards.values() for tensor in tensors}
    members = [without_copies(member, there) for member in members]
    for member in members:
        check_addable(member)
    if onto == "trained":
        check_held_alike(members)
    check_tied_alike(members)
    chosen = with_head(members, mix)
    modules: dict[str, dict[str, Any]] = {}
    for number, member in enumerate(members):
        for module, parts in member.modules.items():
            named = {f"{number}.{part}": tensor for part, tensor in parts.items()}
            modules.setdefault(module, {}).update(named)
    return replace(chosen, modules=modules, shared={}, members=tuple(members), mix=mix)


def without_copies(adapter: Adapter, there: Mapping[str, Stored]) -> Adapter:
    """The adapter without embeddings of the base, which PEFT saves beside an adapter of them."""
    names = naming([*(f"{module}.weight" for module in adapter.modules), *adapter.replaced], there)
    kept = {}
    for name, tensor in adapter.replaced.items():
        known = there.get(names.in_checkpoint(name) or "")
        if known is None or known.dtype != tensor.dtype or not same(tensor, known):
            kept[name] = tensor
    return replace(adapter, replaced=kept)


def check_addable(adapter: Adapter) -> None:
    """Refuse what is no difference to the base's weights, a share of which could be added."""
    why = unaddable(adapter)
    if why is not None:
        raise RunError(
            f"{adapter.folder}: cannot be added to others: {why} - merge it alone, or train LoRA, "
            "rsLoRA, AdaLoRA, LoHa, LoKr or VeRA"
        )


def unaddable(adapter: Adapter) -> str | None:
    """Why a share of it could not be added."""
    start = str(adapter.config.get("init_lora_weights")).lower()
    whole = [name for name in adapter.replaced if not of_head(name)]
    if not adapter.modules or whole:
        names = sorted(whole or adapter.replaced)
        return f"{names[0] if names else 'nothing'} was trained whole, not as a difference"
    if adapter.kind in MULTIPLYING:
        return f"{adapter.kind} {MULTIPLYING[adapter.kind]}, which does not add up"
    if adapter.config.get("use_dora"):
        return "DoRA sets the length of each output's weights anew, which does not add up"
    if any("trainable_tokens_delta" in parts for parts in adapter.modules.values()):
        return "it puts rows in the place of the embeddings'"
    if start in STARTS:
        return (
            f"{start} took its start out of the base, and two such starts overlap (save it with "
            "path_initial_model_for_weight_conversion, and it is an ordinary LoRA)"
        )
    return None


def of_head(name: str) -> bool:
    """Whether a tensor belongs to the head, which stands beside the base."""
    return name.split(".")[0] in OLD_HEADS


def check_held_alike(members: Sequence[Adapter]) -> None:
    """Refuse adapters whose bases were held in training in other ways."""
    held = [held_as(member) for member in members]
    for member, said in zip(members, held, strict=True):
        if said != held[0]:
            raise RunError(
                f"{member.folder}: was trained on a base held in {said}, {members[0].folder} in "
                f"{held[0]}, and there can be one base only - say --onto original"
            )


def held_as(adapter: Adapter) -> str:
    """How the base was held in training."""
    quantize = quantization_of(adapter)
    return f"{quantize.to_dict()} of {trained_precision(adapter)}" if quantize else "its own type"


def check_tied_alike(members: Sequence[Adapter]) -> None:
    """Refuse adapters that speak of tied embeddings in other ways."""
    if len({bool(m.config.get("ensure_weight_tying")) for m in members}) > 1:
        raise RunError(
            f"{members[0].folder}: of the adapters one was trained with ensure_weight_tying, "
            "another without - merge them one after the other"
        )


def with_head(members: Sequence[Adapter], mix: Mix) -> Adapter:
    """The one whose head the merged model gets."""
    bringing = [member for member in members if member.replaced]
    if mix.head_from is not None:
        named = [m for m, name in zip(members, mix.adapters, strict=True) if name == mix.head_from]
        if not named or not named[0].replaced:
            which = ", ".join(n for n, m in zip(mix.adapters, members, strict=True) if m.replaced)
            raise RunError(
                f"--head-from: {mix.head_from} is none of the adapters with a head - name one of "
                f"{which or 'those (there are none)'}"
            )
        return named[0]
    for other in bringing[1:]:
        if not same_head(bringing[0], other):
            raise RunError(
                f"{other.folder}: brings another head than {bringing[0].folder}, and heads that "
                "were trained apart cannot be added - name the one to keep with --head-from"
            )
    return bringing[0] if bringing else members[0]


def same_head(one: Adapter, other: Adapter) -> bool:
    """Whether both heads are the same, number for number and label for label."""
    return (
        one.sealed.get("labels") == other.sealed.get("labels")
        and one.replaced.keys() == other.replaced.keys()
        and all(same(tensor, other.replaced[name]) for name, tensor in one.replaced.items())
    )


def common_base(members: Sequence[Adapter], base: Path | str | None, subtract: bool) -> Path:
    """The folder of the base: the named one, or the one that all adapters name.

    Raises `RunError` where they name others.
    """
    first = base_folder(members[0], base, subtract)
    for member in members[1:] if base is None else ():
        other = base_folder(member, None, subtract)
        sealed = [m.sealed.get("base", {}).get("identity") for m in (members[0], member)]
        if other.resolve() != first.resolve() and (sealed[0] is None or sealed[0] != sealed[1]):
            raise RunError(
                f"{member.folder}: was trained on {other}, {members[0].folder} on {first} - only "
                "adapters of one base add up; where both are the same, name it with --base"
            )
    return first


def left_out(adapter: Adapter) -> list[str]:
    """The adapters whose heads the merged model does not get."""
    if adapter.mix is None or adapter.mix.head_from is None:
        return []
    named = zip(adapter.mix.adapters, adapter.members, strict=True)
    return [name for name, member in named if member.replaced and name != adapter.mix.head_from]
