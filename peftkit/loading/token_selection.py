"""The reader: hooks by which the batch, not the model's code, says which tokens the head reads."""

import logging
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from peftkit.models.architectures import base_of, head_names
from peftkit.models.layouts import ARCHITECTURES
from peftkit.tasks.base import Reading


def attach_token_selection(
    module: nn.Module,
    base: PreTrainedModel,
    packed: bool,
    ahead: int = 0,
    reading: Reading = "example",
    marked: bool = False,
) -> str | None:
    """Make `read_positions`, a keyword of the batch, say which tokens the head reads, or of which
    tokens its output is read.

    `marked` examples say themselves which tokens are read where the first would be.
    `ahead` virtual tokens before each row are never read, nor counted in positions. Returns what
    is read ('first' or 'last'), or None where the model's own code finds it: a padded encoder reads
    position 0 of each row, an encoder-decoder the row's last end-of-sequence token.
    """
    positions: list[Tensor] = []
    hand_on(module, ahead)
    if reading != "example":
        module.register_forward_pre_hook(taking(positions), with_kwargs=True)
        in_decoder = base.config.is_encoder_decoder
        (read_tokens if reading == "tokens" else read_labels)(
            module, base, positions, 0 if in_decoder else ahead
        )
        return None
    architecture = ARCHITECTURES.get(base.config.model_type)
    positioned = packed or (marked and architecture is not None and architecture.reads == "first")
    if architecture is None or (architecture.reads != "last" and not positioned):
        if ahead and architecture is not None and architecture.reads == "first":
            body = base_of(base).get_submodule(architecture.encoder)
            body.register_forward_hook(
                lambda _, __, output: with_states(output, output[0][:, ahead:])
            )
        return None
    module.register_forward_pre_hook(taking(positions), with_kwargs=True)
    if architecture.reads == "first":
        body = base_of(base).get_submodule(architecture.encoder)
        body.register_forward_hook(lambda _, __, output: only_read(output, positions[0], ahead))
    else:
        read_last(module, base, positions, ahead)
    return architecture.reads


def hand_on(module: nn.Module, ahead: int) -> None:
    """Have the base get what PEFT 0.21.2's model for question answering takes and drops: which of
    two texts tokens are of, and their positions; those of virtual tokens are of the first text."""
    if type(module).__name__ != "PeftModelForQuestionAnswering":
        return
    kept: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: Any, keywords: dict[str, Any]) -> None:
        kept.clear()
        for name in ("token_type_ids", "position_ids"):
            if keywords.get(name) is not None:
                kept[name] = keywords[name]

    def restore(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        if "token_type_ids" in kept and ahead:
            kept["token_type_ids"] = functional.pad(kept["token_type_ids"], (ahead, 0))
        whole = {**keywords, **kept}
        kept.clear()
        return arguments, whole

    module.register_forward_pre_hook(keep, with_kwargs=True)
    # not the base's own, which AdaLoRA's model calls past its hooks
    module.get_submodule("base_model").register_forward_pre_hook(restore, with_kwargs=True)


def taking(positions: list[Tensor]) -> Any:
    """A hook that keeps a batch's `read_positions` from the model's own code."""

    def take(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        positions[:] = [keywords.pop("read_positions")] if "read_positions" in keywords else []
        return arguments, keywords

    return take


def read_tokens(
    module: nn.Module, base: PreTrainedModel, positions: list[Tensor], ahead: int
) -> None:
    """Take a head's logits, or a base's states, at the tokens that are read: (tokens, classes), in
    one order."""

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
            if positions and getattr(output, name, None) is not None:
                flat = getattr(output, name)[:, ahead:].flatten(0, 1)
                setattr(output, name, flat[positions[0]])
        return output

    module.register_forward_hook(keep)


def read_labels(
    module: nn.Module, base: PreTrainedModel, positions: list[Tensor], ahead: int
) -> None:
    """Have a language model's head compute logits (tokens, vocabulary) only where they are read."""

    def narrow(_: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
        if not positions:
            return arguments
        # taken away: while text is generated, PEFT calls the base without the hook that sets them
        return (arguments[0][:, ahead:].flatten(0, 1)[positions.pop()], *arguments[1:])

    output_layer: Any = base.get_output_embeddings()
    output_layer.register_forward_pre_hook(narrow)


def only_read(output: Any, positions: Tensor, ahead: int = 0) -> Any:
    """An encoder's output cut to the tokens that are read, or the mean of several an example:
    (examples, 1, hidden)."""
    states = output[0][:, ahead:].flatten(0, 1)[positions]
    return with_states(output, states.unsqueeze(1) if positions.ndim == 1 else states.mean(1, True))


def with_states(output: Any, states: Tensor) -> Any:
    """An encoder's output with other last hidden states."""
    if isinstance(output, tuple):
        return (states, *output[1:])
    output.last_hidden_state = states
    return output


def read_last(
    module: nn.Module, base: PreTrainedModel, positions: list[Tensor], ahead: int
) -> None:
    """Take a decoder's logits at the tokens that are read, not where padding seems to begin."""
    if ahead:  # transformers 5.23 warns that it would read padding; it is asked for nothing
        for name in ("transformers.modeling_layers", type(base).__module__):
            logging.getLogger(name).addFilter(is_not_of_padding)
    every: list[Tensor] = []
    head = base.get_submodule(head_names(base)[-1])

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        every[:] = [output]

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        output.logits = every.pop()[:, ahead:].flatten(0, 1)[positions[0]]
        return output

    head.register_forward_hook(keep)
    module.register_forward_hook(replace)


def is_not_of_padding(record: logging.LogRecord) -> bool:
    """Whether a message is not the one that padding cannot be detected in embeddings."""
    return "will not detect padding tokens" not in record.getMessage()
