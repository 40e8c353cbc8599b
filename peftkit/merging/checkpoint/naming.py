"""Naming: a model's names of tensors and those in a checkpoint, which may lack or have a prefix."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product

LEGACY = {".weight": ".gamma", ".bias": ".beta"}
"""How checkpoints of old call the parts of a normalization; transformers renames them."""

EMBEDDINGS = ("embed_tokens", "word_embeddings", "wte", "shared", "embed_in", "tok_embeddings")
"""How the models of transformers call the embeddings of tokens."""

OLD_HEADS = (
    "lm_head", "cls", "classifier", "score", "qa_outputs", "embed_out", "generator_lm_head",
    "generator_predictions", "discriminator_predictions", "vocab_transform", "vocab_layer_norm",
    "vocab_projector", "predictions", "lm_predictions", "mask_predictions", "classification_head",
)  # fmt: skip
"""How the models of transformers call the heads of their pretraining."""


@dataclass(frozen=True)
class Names:
    """How the names of a model and of a checkpoint differ."""

    there: Collection[str]
    """The checkpoint's."""
    strip: str = ""
    """What the model's have in front and the checkpoint's have not: `bert.`"""
    add: str = ""
    """What the checkpoint's have in front and the model's have not; with `strip`, in its place, as
    `model.` for the `transformer.` of LlamaForQuestionAnswering."""

    def in_checkpoint(self, name: str) -> str | None:
        """The checkpoint's name of the model's tensor; None where it has none."""
        if self.strip and not name.startswith(self.strip):
            return None  # a head's: the checkpoint holds the model without one
        plain = f"{self.add}{name.removeprefix(self.strip)}"
        if plain in self.there:
            return plain
        for ending, old in LEGACY.items():
            if plain.endswith(ending) and f"{plain.removesuffix(ending)}{old}" in self.there:
                return f"{plain.removesuffix(ending)}{old}"
        return None

    def in_output(self, name: str) -> str:
        """The name, in the merged checkpoint, of the base's tensor."""
        if self.strip and self.add:
            within = name.startswith(self.add)
            return f"{self.strip}{name.removeprefix(self.add)}" if within else name
        return f"{self.strip}{name}"


def naming(wanted: Sequence[str], there: Collection[str]) -> Names:
    """The naming by which most of the `wanted` tensors are `there`."""
    firsts = {f"{name.partition('.')[0]}." for name in wanted}
    others = {f"{name.partition('.')[0]}." for name in there}
    # what is in front of few tensors is a layer: `score.weight` is no `embed_tokens.weight`
    fronts = [o for o in sorted(others) if 2 * sum(n.startswith(o) for n in there) > len(there)]
    candidates = [
        Names(there),
        *(Names(there, strip=first) for first in sorted(firsts)),
        *(Names(there, add=other) for other in sorted(others)),
        *(Names(there, one, other) for one, other in product(sorted(firsts), fronts)),
    ]
    return max(
        candidates, key=lambda names: sum(names.in_checkpoint(n) is not None for n in wanted)
    )
