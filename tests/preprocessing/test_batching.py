"""Examples become batches, and batches come in an order that (seed, epoch) alone decides."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.preprocessing.batching import Batcher, Order, longest_first

LENGTHS = torch.randint(3, 200, (407,), generator=torch.Generator().manual_seed(1)).tolist()


def epoch(order: Order, number: int) -> list[int]:
    order.set_epoch(number)
    return list(order)


def padding(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """Share of padded positions when `order` is padded batch by batch."""
    batches = [
        [lengths[i] for i in order[start : start + batch_size]]
        for start in range(0, len(order), batch_size)
    ]
    computed = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / computed


@pytest.mark.parametrize("length_grouped", [True, False])
def test_an_order_is_a_function_of_seed_and_epoch(length_grouped: bool) -> None:
    order = Order(LENGTHS, 16, 3, length_grouped)
    first, second = epoch(order, 0), epoch(order, 1)
    assert first != second
    assert epoch(order, 0) == first
    assert epoch(Order(LENGTHS, 16, 3, length_grouped), 1) == second
    assert epoch(Order(LENGTHS, 16, 4, length_grouped), 0) != first
    torch.manual_seed(99)  # the global state is neither read nor moved
    state = torch.random.get_rng_state()
    assert epoch(order, 1) == second
    assert torch.equal(torch.random.get_rng_state(), state)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
    length_grouped=st.booleans(),
)
def test_an_epoch_is_whole_batches_of_different_examples(
    lengths: list[int], batch_size: int, seed: int, length_grouped: bool
) -> None:
    order = Order(lengths, batch_size, seed, length_grouped)
    found = epoch(order, 0)
    assert len(found) == len(order) == len(lengths) // batch_size * batch_size
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(len(lengths)))


def test_what_is_left_over_differs_from_epoch_to_epoch() -> None:
    order = Order(LENGTHS, 16, 0, True)
    left = [set(range(len(LENGTHS))) - set(epoch(order, number)) for number in range(3)]
    assert all(len(rest) == 407 % 16 for rest in left)
    assert left[0] != left[1] != left[2]


def test_grouping_by_length_saves_most_of_the_padding_and_still_mixes() -> None:
    grouped = epoch(Order(LENGTHS, 16, 0, True), 0)
    mixed = epoch(Order(LENGTHS, 16, 0, False), 0)
    assert padding(LENGTHS, mixed, 16) > 0.4
    assert padding(LENGTHS, grouped, 16) < 0.1
    longest = [LENGTHS[grouped[start]] for start in range(0, len(grouped), 16)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


EXAMPLES = [
    {"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1], "labels": 1},
    {"input_ids": [8], "token_type_ids": [0], "labels": 0},
    {"input_ids": [9, 4], "token_type_ids": [0, 1], "labels": 1},
]


def test_a_padded_batch_has_a_row_an_example() -> None:
    batch = Batcher(packed=False, pad_id=3, reads="last")(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3], [9, 4, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert batch["labels"].tolist() == [1, 0, 1]
    assert batch["input_ids"].flatten()[batch["read_positions"]].tolist() == [7, 8, 4]


def test_a_packed_batch_is_one_row_without_padding() -> None:
    batch = Batcher(packed=True, pad_id=3, first_position=2, reads="first")(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch["position_ids"].tolist() == [[2, 3, 4, 2, 2, 3]]
    assert batch["sequence_lengths"] == (3, 1, 2)
    assert "attention_mask" not in batch
    assert batch["input_ids"][0, batch["read_positions"]].tolist() == [5, 8, 9]
    last = Batcher(packed=True, pad_id=3, reads="last")(EXAMPLES)
    assert last["input_ids"][0, last["read_positions"]].tolist() == [7, 8, 4]


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100))
def test_prediction_takes_every_example_once_longest_first_within_its_tokens(
    lengths: list[int], most: int
) -> None:
    batches = list(longest_first(lengths, most))
    taken = [index for batch in batches for index in batch]
    assert sorted(taken) == list(range(len(lengths)))
    assert [lengths[i] for i in taken] == sorted(lengths, reverse=True)
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= most for b in batches)
