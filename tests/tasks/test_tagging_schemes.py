"""Tagging schemes: what is well-formed in which, and the same entities from all of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Tokens

from peftkit.tasks.token_classification.schemes import (
    Entity,
    best_path,
    entities,
    marks_entities,
    misplaced,
    scheme_of,
    tag_names,
    to_iob2,
    types_in,
)

SEQEVAL = {"iob1": IOB1, "iob2": IOB2, "bilou": BILOU, "iobes": IOBES}
TYPES = ("LOC", "PER")
any_tags = st.lists(st.sampled_from(tag_names(TYPES)), max_size=12)
lengths = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from(TYPES)), max_size=5
)


def tagged(parts: list[tuple[int, int, str]], scheme: str) -> list[str]:
    """Tags in a scheme of entities of so many words, each behind so many words outside."""
    tags: list[str] = []
    for gap, length, kind in parts:
        begin, inside, last, single = {"bilou": "BILU", "iobes": "BIES"}.get(scheme, "BIIB")
        if scheme == "iob1" and (gap or not tags or tags[-1][2:] != kind):
            begin = single = "I"
        letters = single if length == 1 else begin + inside * (length - 2) + last
        tags += ["O"] * gap + [f"{letter}-{kind}" for letter in letters]
    return tags


def of_seqeval(tags: list[str], scheme: str) -> list[Entity]:
    found = Tokens(tags, SEQEVAL[scheme]).entities
    return [Entity(each.tag, each.start, each.end) for each in found]


@settings(deadline=None)
@given(any_tags)
def test_entities_are_seqevals_also_of_ill_formed_tags(tags: list[str]) -> None:
    assert entities(tags) == of_seqeval(tags, "iob2")


@pytest.mark.parametrize("scheme", SEQEVAL)
@settings(deadline=None)
@given(lengths)
def test_every_scheme_becomes_iob2_with_the_same_entities(
    scheme: str, parts: list[tuple[int, int, str]]
) -> None:
    tags = tagged(parts, scheme)
    assert misplaced(tags, scheme) == []
    assert to_iob2(tags) == tagged(parts, "iob2")
    assert entities(to_iob2(tags)) == of_seqeval(tags, scheme)
    assert misplaced(to_iob2(tags), "iob2") == []


@settings(deadline=None)
@given(any_tags)
def test_ill_formed_tags_become_well_formed_ones(tags: list[str]) -> None:
    found = to_iob2(tags)
    assert misplaced(found, "iob2") == []
    assert [tag[2:] for tag in found] == [tag[2:] for tag in tags]
    assert (found == tags) == (misplaced(tags, "iob2") == [])


def test_the_scheme_is_found_out() -> None:
    adjacent = [(0, 2, "PER"), (0, 1, "PER"), (1, 3, "LOC")]
    for scheme in SEQEVAL:
        assert scheme_of([tagged(adjacent, scheme)]) == scheme
    assert scheme_of([["O", "I-PER", "I-PER", "O"]]) == "iob1"
    assert scheme_of([["O", "B-PER"], ["O"]]) == "iob2"
    assert scheme_of([["O", "I-PER", "O", "B-PER"]]) == "iob2"  # and ill-formed in it


def test_what_is_ill_formed_is_told_by_its_place() -> None:
    assert misplaced(["O", "I-PER", "I-PER", "I-LOC"], "iob2") == [1, 3]
    assert misplaced(["I-PER", "B-LOC", "O"], "iob1") == [1]
    assert misplaced(["B-PER", "O", "I-PER", "L-PER"], "bilou") == [1, 2]
    assert misplaced(["B-PER"], "iobes") == [1]  # it does not end
    assert misplaced(["S-PER", "U-PER"], "iobes") == [1]


def test_plain_tags_mark_no_entities() -> None:
    assert marks_entities(["O", "B-PER", "I-PER", "B"])
    assert not marks_entities(["NN", "O"])
    assert types_in(["O", "I-PER", "B-LOC", "B"]) == ["PER", "LOC", "_"]
    assert entities(["B", "I", "O"]) == [Entity("_", 0, 2)]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_best_path_is_the_best_of_all_well_formed_ones(seed: int, words: int) -> None:
    names = tag_names(TYPES)
    logs = np.log(np.random.default_rng(seed).dirichlet(np.ones(len(names)), size=words))
    found = best_path(logs, names)
    every = [
        (sum(logs[place, tag] for place, tag in enumerate(path)), list(path))
        for path in itertools.product(range(len(names)), repeat=words)
        if not misplaced([names[tag] for tag in path], "iob2")
    ]
    assert found == max(every)[1]
