"""Ties: an output layer that is the embeddings again, kept so, or untied where they part."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.checkpoint.naming import EMBEDDINGS, Names
from peftkit.merging.checkpoint.tensors import Stored, load
from peftkit.merging.model_classes import is_language_model

if TYPE_CHECKING:
    from peftkit.merging.outputs import Output

HEADS = ("lm_head.weight", "embed_out.weight")
"""The output layers that can be tied to the embeddings of tokens."""
UNTIED = {"tie_word_embeddings": False}
"""What the configuration then says."""


def settle_ties(
    adapter: Adapter,
    names: Names,
    outputs: dict[str, "Output"],
    fresh: dict[str, "Output"],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Add, to the outputs or the `fresh` ones, an output layer where it parts from the embeddings.

    Returns what changes in the configuration.
    """
    if adapter.trains_head or not is_language_model(config):
        return {}
    give_to_copies(adapter, outputs, config)
    head = next((h for h in HEADS if names.in_checkpoint(h) is not None), None)
    if head is not None and config.get("tie_word_embeddings") is False:
        return {}
    changed = {names.in_checkpoint(f"{module}.weight") for module in adapter.modules}
    changed |= {place for place, output in outputs.items() if output.touched}
    embeddings = embeddings_of(outputs, changed)
    if head is not None:
        return untied_where_only_one(names, changed, config, head, embeddings)
    if embeddings is None:
        return {}
    name = "embed_out.weight" if config.get("model_type") == "gpt_neox" else "lm_head.weight"
    own = name.removesuffix(".weight") in adapter.modules
    apart = own or parts_embeddings(adapter, names, embeddings)
    if name in fresh:  # PEFT saves both where one is adapted, or the vocabulary was resized
        if not apart and same(fresh[name].source, outputs[embeddings].source):
            fresh.pop(name)
            return {}
        return UNTIED
    if not apart:
        return {}
    base = outputs[embeddings].base
    assert base is not None
    fresh[name] = replace(outputs[embeddings], name=name, source=base, base=base, folds=())
    return UNTIED


def give_to_copies(
    adapter: Adapter, outputs: dict[str, "Output"], config: Mapping[str, Any]
) -> None:
    """Where a run of ours trained a table that the base's files hold several times (as T5's once
    were written), put it in the place of each: they were one tensor in training."""
    tables = {place: output for place, output in outputs.items() if is_table(place, config)}
    trained = [output for output in tables.values() if output.touched and output.base is not None]
    for output in trained if adapter.sealed else ():
        assert output.base is not None
        for place, other in tables.items():
            if not other.touched and same(other.source, output.base):
                outputs[place] = replace(other, source=output.source)


def is_table(place: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is the embeddings of tokens, or an output layer that may be tied to them."""
    if ".layer" in place:
        return False
    tied = () if config.get("tie_word_embeddings") is False else HEADS
    return place.endswith((*tied, *(f"{e}.weight" for e in EMBEDDINGS)))


def embeddings_of(outputs: Mapping[str, "Output"], changed: AbstractSet[str | None]) -> str | None:
    """The checkpoint's name of the embeddings of tokens.

    Raises `RunError` where there are several, of which only some are `changed`.
    """
    found = [place for place in outputs if is_table(place, UNTIED)]
    if 0 < len(changed & {*found}) < len(found):
        raise RunError(
            f"there are several embeddings of tokens ({', '.join(sorted(found)[:4])}), and which "
            "the output layer is tied to cannot be told - merge with PEFT"
        )
    return found[0] if found else None


def parts_embeddings(adapter: Adapter, names: Names, place: str) -> bool:
    """Whether PEFT trained the embeddings apart from the output layer that they are tied to."""
    if not adapter.config or adapter.config.get("ensure_weight_tying"):
        return False
    folded = {
        names.in_checkpoint(f"{module}.weight")
        for module, parts in adapter.modules.items()
        if "trainable_tokens_delta" not in parts  # which PEFT ties
    }
    saved = adapter.config.get("modules_to_save") or ()
    replaced = {
        names.in_checkpoint(name)
        for name in adapter.replaced
        if any(f".{entry}." in f".{name}" for entry in saved)
    }
    return place in folded | replaced


def untied_where_only_one(
    names: Names,
    changed: AbstractSet[str | None],
    config: Mapping[str, Any],
    head: str,
    embeddings: str | None,
) -> dict[str, Any]:
    """The change for a checkpoint that holds both, though its configuration ties them."""
    if not config.get("tie_word_embeddings") or embeddings is None:
        return {}
    return UNTIED if (names.in_checkpoint(head) in changed) != (embeddings in changed) else {}


def same(one: Stored, other: Stored) -> bool:
    """Whether two tensors are the same, number for number."""
    return one.shape == other.shape and bool((load(one) == load(other)).all())
