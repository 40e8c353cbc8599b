"""Attaches a soft prompt to a plain transformers model."""

from typing import Any

import torch
from torch import Tensor, nn


def attach(model: Any, _: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Prepend learned embeddings to those of each text, once per generated text
    (arXiv:2104.08691)."""
    model.prompt = nn.Parameter(tensors.pop("prompt"))
    length, lengths = len(model.prompt), list[int]()

    def prepend(_: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = inputs[0] if inputs else kwargs.pop("input_ids")
        texts = model.get_input_embeddings()(ids)
        cache = kwargs.get("past_key_values")
        begins = cache is None or not cache.get_seq_length()
        prompts = model.prompt.to(texts.dtype).expand(len(ids), -1, -1)
        mask = kwargs.pop("attention_mask", torch.ones_like(ids) if begins else None)
        kwargs["attention_mask"] = (
            mask if mask is None else nn.functional.pad(mask, (length, 0), value=1)
        )
        if kwargs.get("token_type_ids") is not None:
            kwargs["token_type_ids"] = nn.functional.pad(kwargs["token_type_ids"], (length, 0))
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = shift(kwargs["position_ids"], length, begins)
        lengths[:] = [ids.shape[1]]
        return (), {
            **kwargs,
            "inputs_embeds": torch.cat([prompts, texts], dim=1) if begins else texts,
        }

    def drop_prompt(_: nn.Module, __: Any, output: Any) -> Any:
        if output.logits.ndim == 3:  # logits of tokens: without the prompt's
            output.logits = output.logits[:, -lengths.pop() :]
        return output

    model.register_forward_pre_hook(prepend, with_kwargs=True)
    model.register_forward_hook(drop_prompt)


def shift(positions: Tensor, length: int, begins: bool) -> Tensor:
    """The positions of tokens after a prompt, with the prompt's own if it `begins` here."""
    shifted = positions + length
    first = torch.arange(length, device=positions.device).expand(len(positions), -1)
    return torch.cat([first, shifted], dim=1) if begins else shifted
