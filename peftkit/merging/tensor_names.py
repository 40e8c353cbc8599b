"""`TensorNames`: how the names of tensors in a model and in a checkpoint differ."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product

OLD_SUFFIXES = {".weight": ".gamma", ".bias": ".beta"}
"""Old names of a normalization's parameters in checkpoints; transformers renames them."""

EMBEDDINGS = ("embed_tokens", "word_embeddings", "wte", "shared", "embed_in", "tok_embeddings")
"""Names of the token embeddings in transformers' models."""

HEADS = (
    "lm_head", "cls", "classifier", "score", "qa_outputs", "embed_out", "generator_lm_head",
    "generator_predictions", "discriminator_predictions", "vocab_transform", "vocab_layer_norm",
    "vocab_projector", "predictions", "lm_predictions", "mask_predictions", "classification_head",
)  # fmt: skip
"""Names of heads in transformers' models."""


@dataclass(frozen=True)
class TensorNames:
    """Maps the names of a model's tensors to those in a checkpoint, and back."""

    in_file: Collection[str]
    """The names in the checkpoint."""
    model_prefix: str = ""
    """The prefix that only the model's names have: `bert.`"""
    file_prefix: str = ""
    """The prefix that only the checkpoint's names have; with `model_prefix`, what replaces it:
    `model.` for the `transformer.` of LlamaForQuestionAnswering."""

    def in_checkpoint(self, name: str) -> str | None:
        """The checkpoint's name of a tensor of the model; None if it is not there."""
        if self.model_prefix and not name.startswith(self.model_prefix):
            return None  # a head's: the checkpoint is of the model without a head
        plain = f"{self.file_prefix}{name.removeprefix(self.model_prefix)}"
        if plain in self.in_file:
            return plain
        for ending, old in OLD_SUFFIXES.items():
            if plain.endswith(ending) and f"{plain.removesuffix(ending)}{old}" in self.in_file:
                return f"{plain.removesuffix(ending)}{old}"
        return None

    def in_output(self, name: str) -> str:
        """The merged checkpoint's name of a tensor of the base."""
        if self.model_prefix and self.file_prefix:
            within = name.startswith(self.file_prefix)
            return f"{self.model_prefix}{name.removeprefix(self.file_prefix)}" if within else name
        return f"{self.model_prefix}{name}"


def match_names(wanted: Sequence[str], in_file: Collection[str]) -> TensorNames:
    """The mapping by which most of the `wanted` names of the model are `in_file`."""
    firsts = {f"{name.partition('.')[0]}." for name in wanted}
    others = {f"{name.partition('.')[0]}." for name in in_file}
    # a prefix of few tensors is a layer's name: `score.weight` is not `embed_tokens.weight`
    prefixes = [
        o for o in sorted(others) if 2 * sum(n.startswith(o) for n in in_file) > len(in_file)
    ]
    candidates = [
        TensorNames(in_file),
        *(TensorNames(in_file, model_prefix=first) for first in sorted(firsts)),
        *(TensorNames(in_file, file_prefix=other) for other in sorted(others)),
        *(TensorNames(in_file, one, other) for one, other in product(sorted(firsts), prefixes)),
    ]
    return max(
        candidates, key=lambda names: sum(names.in_checkpoint(n) is not None for n in wanted)
    )
