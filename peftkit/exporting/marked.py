"""Texts with two marked parts, as the model in this folder reads them.

`load.py` calls `prepare`. A text is marked as in "the <e1>dog</e1> near a <e2>horse</e2>".
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding


def prepare(model: Any, tokenizer: Any, settings: dict[str, Any], encode_text: Any) -> Any:
    """Have the model's head read it at the opening markers, and give back a tokenizer of marked
    texts; `encode_text` reads what is spelled as a special token as text."""
    known, added = settings["marked"], settings["added"]
    if settings["reads"] == "first":
        read_openings(model, settings["encoder"], known["opening"], known["ahead"])
    markers = dict(zip(added["tokens"], added["ids"], strict=True))
    return MarkedTokenizer(tokenizer, markers, encode_text)


def read_openings(
    model: Any, encoder: str, opening: Sequence[int], num_virtual_tokens: int
) -> None:
    """Have the head read both opening markers, on average (arXiv:1906.03158), after
    `num_virtual_tokens` virtual tokens, where it reads the first token else."""
    found: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        ids = inputs[0] if inputs else given["input_ids"]
        found[:] = [torch.isin(ids, torch.tensor(opening, device=ids.device))]

    def pool(_: nn.Module, __: Any, output: Any) -> Any:
        where = found.pop()
        read = (
            output[0][:, num_virtual_tokens:][where]
            .view(len(where), 2, -1)
            .mean(dim=1, keepdim=True)
        )
        if isinstance(output, tuple):
            return (read, *output[1:])
        output.last_hidden_state = read
        return output

    # before a prompt's, which takes the ids away
    model.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
    model.get_submodule(encoder).register_forward_hook(pool)


class MarkedTokenizer:
    """Marked texts as batches: each marker is one token, between the pieces of the text without
    them; of a text that is too long those are kept that are next to them."""

    def __init__(self, plain: Any, markers: dict[str, int], encode_text: Any) -> None:
        self.plain, self.markers, self.encode_text = plain, markers, encode_text
        longest_first = sorted(markers, key=len, reverse=True)
        self.mark = re.compile("|".join(map(re.escape, longest_first)))
        inner = plain("a", add_special_tokens=False)["input_ids"]
        whole = plain("a")["input_ids"]
        spans = range(len(whole) - len(inner) + 1)
        start = next(i for i in spans if whole[i : i + len(inner)] == inner)
        self.before, self.after = whole[:start], whole[start + len(inner) :]
        self.room = plain.model_max_length - len(self.before) - len(self.after)

    def __call__(self, texts: str | Sequence[str], pairs: None = None, **_: Any) -> BatchEncoding:
        """The texts as one batch of tensors, padded on the right."""
        rows = [self.ids_of(text) for text in ([texts] if isinstance(texts, str) else texts)]
        longest, pad = max(map(len, rows)), self.plain.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        seen = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
        batch = {"input_ids": ids, "attention_mask": seen.long()}
        if "token_type_ids" in self.plain.model_input_names:
            batch["token_type_ids"] = torch.zeros_like(ids)
        return BatchEncoding(batch)

    def ids_of(self, text: str) -> list[int]:
        """The tokens of one text; raises `ValueError` where its two parts are not marked."""
        plain, ends, markers = self.parts(text)
        how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        found = self.encode_text(self.plain, [plain], **how)
        spans: list[tuple[int, int]] = [(a, b) for a, b in found["offset_mapping"][0]]
        ids, places = list(found["input_ids"][0]), [0] * len(markers)
        # from behind, so that what stands before keeps its place; where two meet, one closes first
        for place, _, which in sorted(insertions(ends, spans), reverse=True):
            ids.insert(place, markers[which])
            places = [p + 1 if p >= place else p for p in places]
            places[which] = place
        kept = nearest_to(places, len(ids), self.room)
        return [*self.before, *(ids[index] for index in kept), *self.after]

    def parts(self, text: str) -> tuple[str, list[int], list[int]]:
        """A text without its marks, where the first part begins and ends in it, and the second, and
        the markers for these places."""
        marks = list(self.mark.finditer(text))
        found = [mark[0] for mark in marks]
        closed = [f"</{mark[1:]}" for mark in found[::2]]
        if found[1::2] != closed or sorted(mark[1:3] for mark in found[::2]) != ["e1", "e2"]:
            wanted = "mark two parts, as in <e1>rain</e1> and <e2>storm</e2>"
            raise ValueError(f"{text!r}: {wanted} (the marks are {', '.join(self.markers)})")
        before = [sum(map(len, found[:index])) for index in range(4)]
        ends = [mark.start() - less for mark, less in zip(marks, before, strict=True)]
        order = [0, 1, 2, 3] if found[0].startswith("<e1") else [2, 3, 0, 1]
        markers = [self.markers[found[index]] for index in order]
        return self.mark.sub("", text), [ends[index] for index in order], markers


def insertions(ends: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Before which token each marker goes; a part takes in whole tokens."""
    found = []
    for number, (start, end) in enumerate((ends[:2], ends[2:])):
        touched = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
        before = bisect_left(spans, (start, start))
        first, behind = (touched[0], touched[-1] + 1) if touched else (before, before)
        found.append((first, 1, 2 * number))
        found.append((behind, 0 if touched else 2, 2 * number + 1))
    return found


def nearest_to(places: Sequence[int], length: int, room: int) -> list[int]:
    """At most `room` of so many tokens, in their order: those between the markers before those
    around them, and what is nearer to one of them before what is farther."""
    first, last = min(places), max(places)

    def rank(index: int) -> tuple[bool, int]:
        return not first <= index <= last, min(abs(index - place) for place in places)

    return sorted(sorted(range(length), key=rank)[:room])
