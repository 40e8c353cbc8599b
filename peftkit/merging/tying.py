"""Ties: an output layer that is the embeddings again, kept so, or untied where they part."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter
from peftkit.merging.naming import EMBEDDINGS, Names
from peftkit.merging.tensors import Stored, load

if TYPE_CHECKING:
    from peftkit.merging.plan import Output

HEADS = ("lm_head.weight", "embed_out.weight")
"""The output layers that can be tied to the embeddings of tokens."""
UNTIED = {"tie_word_embeddings": False}
"""What the configuration then says."""
LANGUAGE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the classes are called that have an output layer over the vocabulary."""


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
    if adapter.trains_head or not has_output_layer(config):
        return {}
    head = next((h for h in HEADS if names.in_checkpoint(h) is not None), None)
    embeddings = embeddings_of(names, outputs)
    if head is not None:
        return untied_where_only_one(adapter, names, outputs, config, head, embeddings)
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


def has_output_layer(config: Mapping[str, Any]) -> bool:
    """Whether the base's class has one over the vocabulary."""
    classes = config.get("architectures") or ()
    return any(str(name).endswith(LANGUAGE) for name in classes)


def embeddings_of(names: Names, outputs: Mapping[str, "Output"]) -> str | None:
    """The checkpoint's name of the embeddings of tokens."""
    found = [
        place
        for place in outputs
        if place.endswith(tuple(f"{e}.weight" for e in EMBEDDINGS)) and ".layer" not in place
    ]
    if len(found) > 1:
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
    adapter: Adapter,
    names: Names,
    outputs: Mapping[str, "Output"],
    config: Mapping[str, Any],
    head: str,
    embeddings: str | None,
) -> dict[str, Any]:
    """The change for a checkpoint that holds both, though its configuration ties them."""
    if not config.get("tie_word_embeddings") or embeddings is None:
        return {}
    modules = {names.in_checkpoint(f"{m}.weight") for m in adapter.modules}
    changed = modules | {names.in_checkpoint(n) for n in adapter.replaced}
    return UNTIED if (names.in_checkpoint(head) in changed) != (embeddings in changed) else {}


def same(one: Stored, other: Stored) -> bool:
    """Whether two tensors are the same, number for number."""
    return one.shape == other.shape and bool((load(one) == load(other)).all())
