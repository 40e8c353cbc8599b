"""Tokens that a task adds to a model as markers."""

from collections.abc import Sequence
from typing import Any

import torch


def add_marker_tokens(tokenizer: Any, markers: Sequence[str]) -> None:
    """Add each of the `markers` to the tokenizer as a special token."""
    if markers:
        tokenizer.add_tokens(list(markers), special_tokens=True)


def extend(model: Any, tokenizer: Any, markers: Sequence[str]) -> None:
    """Resize the embeddings for the `markers`. Each starts as the mean of the embeddings of its
    name's tokens, plus noise, so that a frozen base can tell markers apart."""
    if not markers:
        return
    before = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for marker in markers:
            inner = marker.strip("<>[]/ ")
            ids = tokenizer(inner or marker, add_special_tokens=False)["input_ids"]
            own = tokenizer.convert_tokens_to_ids(marker)
            mean = table[[each for each in ids if each != own]].float().mean(dim=0)
            # markers with the same name (<e1>, </e1>) must differ
            generator = torch.Generator().manual_seed(own)
            noise = torch.randn(mean.shape, generator=generator) * float(table.float().std()) / 2
            table[own] = (mean + noise.to(mean.device)).to(table.dtype)
