"""The collator, which pads or packs examples into batches, and the seeded sampler."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from peftkit.tasks.base import IGNORE_INDEX, Reading

Example = Mapping[str, Any]
SORTED_TOGETHER = 50
"""Batches that are sorted by length among themselves: more saves padding, fewer mixes better."""


@dataclass(frozen=True)
class Batcher:
    """Turns encoded examples into one batch of tensors; the only place that pads or packs."""

    packed: bool
    """One row without padding instead of one padded row an example."""
    pad_id: int
    first_position: int = 0
    """Position id of a sequence's first token."""
    reads: str | None = None
    """The token the head reads, 'first' or 'last'; None where the model's own code finds it."""
    reading: Reading = "example"
    """What is read of each example."""
    decoder_start: int | None = None
    """For encoder-decoders whose decoder is read: the token that its sequences begin with."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The batch for `examples`, in their order.

        `labels` are (examples, ...), or (tokens,) of all that is read, example by example; where in
        the flattened rows those tokens stand is in `read_positions`.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        batch = self._packed(examples, lengths) if self.packed else self._padded(examples, lengths)
        if self.reading == "example":
            if self.reads is not None:
                batch["read_positions"] = self._read_positions(lengths, examples)
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
            return batch
        if self.decoder_start is not None:
            lengths = [len(example["labels"]) for example in examples]
            batch["decoder_input_ids"] = self._decoder_rows(examples, max(lengths))
        steps = [self._steps(example) for example in examples]
        starts = self._starts(lengths).tolist()
        places = [s + step for s, own in zip(starts, steps, strict=True) for step in own]
        batch["read_positions"] = torch.tensor(places, dtype=torch.long)
        batch["labels"] = torch.cat([self._labels(example) for example in examples])
        return batch

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """How many of the batch's `labels` are each example's."""
        if self.reading == "example":
            return [1] * len(examples)
        return [len(self._steps(example)) for example in examples]

    def _steps(self, example: Example) -> list[int]:
        """The places in an example's sequence whose output is read."""
        labels = example["labels"]
        if self.reading == "tokens":
            return list(range(len(example["input_ids"])))
        if self.decoder_start is not None:
            return [step for step, label in enumerate(labels) if label != IGNORE_INDEX]
        # a language model's word on a token is its output at the one before
        return [step - 1 for step, label in enumerate(labels) if step and label != IGNORE_INDEX]

    def _labels(self, example: Example) -> Tensor:
        labels = torch.tensor(example["labels"])
        if self.reading == "tokens":
            return labels
        first = 0 if self.decoder_start is not None else 1
        rest = labels[first:]
        return rest[rest != IGNORE_INDEX]

    def _decoder_rows(self, examples: Sequence[Example], longest: int) -> Tensor:
        """The targets one step to the right, behind the token that begins them."""
        rows = []
        for example in examples:
            before = [self.decoder_start, *example["labels"][:-1]]
            known = [self.pad_id if token == IGNORE_INDEX else token for token in before]
            rows.append([*known, *[self.pad_id] * (longest - len(known))])
        return torch.tensor(rows)

    def _packed(self, examples: Sequence[Example], lengths: list[int]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            key: torch.tensor([[token for example in examples for token in example[key]]])
            for key in token_keys(examples)
        }
        positions = [torch.arange(length) + self.first_position for length in lengths]
        batch["position_ids"] = torch.cat(positions).unsqueeze(0)
        batch["sequence_lengths"] = tuple(lengths)
        return batch

    def _padded(self, examples: Sequence[Example], lengths: list[int]) -> dict[str, Any]:
        batch, longest = {}, max(lengths)
        for key in token_keys(examples):
            filler = self.pad_id if key == "input_ids" else 0
            rows = [[*e[key], *[filler] * (longest - len(e[key]))] for e in examples]
            batch[key] = torch.tensor(rows)
        seen = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        return {**batch, "attention_mask": seen.long()}

    def _read_positions(self, lengths: list[int], examples: Sequence[Example]) -> Tensor:
        """Index of the token that the head reads, counted through all rows of the batch; or of the
        several that examples name in `read`: (examples, tokens)."""
        starts = self._starts(lengths)
        if self.reads == "first" and "read" in examples[0]:
            return starts[:, None] + torch.tensor([example["read"] for example in examples])
        return starts if self.reads == "first" else starts + torch.tensor(lengths) - 1

    def _starts(self, lengths: list[int]) -> Tensor:
        """Index of each sequence's first token, counted through all rows of the batch."""
        width = torch.full((len(lengths),), max(lengths))
        sizes = torch.tensor(lengths) if self.packed else width
        return sizes.cumsum(0) - sizes


def token_keys(examples: Sequence[Example]) -> list[str]:
    """The columns that hold one value a token."""
    return [key for key in ("input_ids", "token_type_ids") if key in examples[0]]


class Order(Sampler[int]):
    """The order of the examples of an epoch: a function of (seed, epoch) alone.

    Only whole batches of `batch_size` are given, so that an optimizer step always counts as many
    examples; what is left over differs from epoch to epoch. Each batch is a contiguous stretch,
    sorted by length, so that 1, 2 or 4 ranks take the same examples in the same step.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, length_grouped: bool
    ) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.length_grouped = length_grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)[: len(self)]
        batches = order.view(-1, self.batch_size)
        if self.length_grouped:
            stretch = SORTED_TOGETHER * self.batch_size
            order = torch.cat([self._by_length(part) for part in torch.split(order, stretch)])
            batches = order.view(-1, self.batch_size)
            batches = batches[torch.randperm(len(batches), generator=generator)]
        return iter([index for batch in batches for index in self._by_length(batch).tolist()])

    def _by_length(self, indices: Tensor) -> Tensor:
        return indices[self.lengths[indices].argsort(stable=True, descending=True)]


def longest_first(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Batches of indices for prediction, longest first, each within `max_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        count = max(1, max_tokens // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]
