"""Token selection: the batch, not the model's code, selects the tokens that the head reads."""

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
    num_virtual_tokens: int = 0,
    reading: Reading = "example",
    marked: bool = False,
) -> str | None:
    """Make `read_positions`, a keyword of the batch, select the tokens that the head reads, or of
    which its output is read.

    With `marked`, each example selects its own tokens instead of the first. `num_virtual_tokens`
    before each row are never read, nor counted in positions. Returns what is read ('first' or
    'last'), or None if the model's own code selects: a padded encoder reads position 0 of each row,
    an encoder-decoder the row's last end-of-sequence token.
    """
    positions: list[Tensor] = []
    pass_on_inputs(module, num_virtual_tokens)
    if reading != "example":
        module.register_forward_pre_hook(take_positions(positions), with_kwargs=True)
        in_decoder = base.config.is_encoder_decoder
        (read_tokens if reading == "tokens" else read_labels)(
            module, base, positions, 0 if in_decoder else num_virtual_tokens
        )
        return None
    architecture = ARCHITECTURES.get(base.config.model_type)
    positioned = packed or (marked and architecture is not None and architecture.reads == "first")
    if architecture is None or (architecture.reads != "last" and not positioned):
        if num_virtual_tokens and architecture is not None and architecture.reads == "first":
            body = base_of(base).get_submodule(architecture.encoder)
            body.register_forward_hook(
                lambda _, __, output: with_states(output, output[0][:, num_virtual_tokens:])
            )
        return None
    module.register_forward_pre_hook(take_positions(positions), with_kwargs=True)
    if architecture.reads == "first":
        body = base_of(base).get_submodule(architecture.encoder)
        body.register_forward_hook(
            lambda _, __, output: only_read(output, positions[0], num_virtual_tokens)
        )
    else:
        read_last(module, base, positions, num_virtual_tokens)
    return architecture.reads


def pass_on_inputs(module: nn.Module, num_virtual_tokens: int) -> None:
    """Pass `token_type_ids` and `position_ids` to the base, which PEFT 0.21.2's model for question
    answering drops; virtual tokens have type 0."""
    if type(module).__name__ != "PeftModelForQuestionAnswering":
        return
    kept: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: Any, keywords: dict[str, Any]) -> None:
        kept.clear()
        for name in ("token_type_ids", "position_ids"):
            if keywords.get(name) is not None:
                kept[name] = keywords[name]

    def restore(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        if "token_type_ids" in kept and num_virtual_tokens:
            kept["token_type_ids"] = functional.pad(kept["token_type_ids"], (num_virtual_tokens, 0))
        passed = {**keywords, **kept}
        kept.clear()
        return arguments, passed

    module.register_forward_pre_hook(keep, with_kwargs=True)
    # not the innermost module, which AdaLoRA's model calls without its hooks
    module.get_submodule("base_model").register_forward_pre_hook(restore, with_kwargs=True)


def take_positions(positions: list[Tensor]) -> Any:
    """A hook that removes `read_positions` from the batch and stores it."""

    def take(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        positions[:] = [keywords.pop("read_positions")] if "read_positions" in keywords else []
        return arguments, keywords

    return take


def read_tokens(
    module: nn.Module, base: PreTrainedModel, positions: list[Tensor], num_virtual_tokens: int
) -> None:
    """Select a head's logits, or a base's hidden states, at `read_positions`: (tokens, classes)."""

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
            if positions and getattr(output, name, None) is not None:
                flat = getattr(output, name)[:, num_virtual_tokens:].flatten(0, 1)
                setattr(output, name, flat[positions[0]])
        return output

    module.register_forward_hook(keep)


def read_labels(
    module: nn.Module, base: PreTrainedModel, positions: list[Tensor], num_virtual_tokens: int
) -> None:
    """Compute the logits of a language model's head only at `read_positions`: (tokens,
    vocabulary)."""

    def narrow(_: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
        if not positions:
            return arguments
        # removed: during generation PEFT calls the base without the hook that sets them
        return (arguments[0][:, num_virtual_tokens:].flatten(0, 1)[positions.pop()], *arguments[1:])

    output_layer: Any = base.get_output_embeddings()
    output_layer.register_forward_pre_hook(narrow)


def only_read(output: Any, positions: Tensor, num_virtual_tokens: int = 0) -> Any:
    """An encoder's output at the selected tokens, or at the mean of several per example: (examples,
    1, hidden)."""
    states = output[0][:, num_virtual_tokens:].flatten(0, 1)[positions]
    return with_states(output, states.unsqueeze(1) if positions.ndim == 1 else states.mean(1, True))


def with_states(output: Any, states: Tensor) -> Any:
    """An encoder's output with other last hidden states."""
    if isinstance(output, tuple):
        return (states, *output[1:])
    output.last_hidden_state = states
    return output


def read_last(
    module: nn.Module, base: PreTrainedModel, positions: list[Tensor], num_virtual_tokens: int
) -> None:
    """Select a decoder's logits at `read_positions`, instead of where padding seems to start."""
    if (
        num_virtual_tokens
    ):  # transformers 5.23 warns that it may read padding; its selection is not used
        for name in ("transformers.modeling_layers", type(base).__module__):
            logging.getLogger(name).addFilter(is_not_of_padding)
    every: list[Tensor] = []
    head = base.get_submodule(head_names(base)[-1])

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        every[:] = [output]

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        output.logits = every.pop()[:, num_virtual_tokens:].flatten(0, 1)[positions[0]]
        return output

    head.register_forward_hook(keep)
    module.register_forward_hook(replace)


def is_not_of_padding(record: logging.LogRecord) -> bool:
    """Whether a message is not the warning that padding cannot be detected in embeddings."""
    return "will not detect padding tokens" not in record.getMessage()
