"""Vocabulary: tokens that a task adds to a model, as markers of what stands between them."""

from collections.abc import Sequence
from typing import Any

import torch


def add_markers(tokenizer: Any, markers: Sequence[str]) -> None:
    """Make each of the `markers` one token of the tokenizer."""
    if markers:
        tokenizer.add_tokens(list(markers), special_tokens=True)


def extend(model: Any, tokenizer: Any, markers: Sequence[str]) -> None:
    """Give the model an embedding for each of the `markers`: at first the mean of what the tokens
    of its letters have, so that a frozen base knows them apart."""
    if not markers:
        return
    before = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for marker in markers:
            inner = marker.strip("<>[]/ ")
            pieces = tokenizer(inner or marker, add_special_tokens=False)["input_ids"]
            own = tokenizer.convert_tokens_to_ids(marker)
            mean = table[[piece for piece in pieces if piece != own]].float().mean(dim=0)
            # two markers of one name (<e1>, </e1>) must differ
            generator = torch.Generator().manual_seed(own)
            noise = torch.randn(mean.shape, generator=generator) * float(table.float().std()) / 2
            table[own] = (mean + noise.to(mean.device)).to(table.dtype)
