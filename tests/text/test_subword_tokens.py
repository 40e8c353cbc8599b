"""Pieces: words and parts of texts among the tokens, whichever way a tokenizer cuts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from peftkit.errors import DataError, RecipeError
from peftkit.hub.resolve import find_model
from peftkit.hub.toy_models import TINY
from peftkit.loading.model import load_tokenizer
from peftkit.tasks.token_classification.rows import sentence_of
from peftkit.text.subword_tokens import (
    SubwordTokens,
    align_words,
    choose_window,
    find_frame,
    find_unknown_id,
    insert_markers,
    keep_nearest,
    split_windows,
    tokenize_with_spans,
)

WORDS = ["The", "U.N.", "naïve", "O'Neill", "\x96", "日本", "New York", "😀", "-", "e\u0301a", "."]
TEXTS = [" ".join(WORDS), "rain rain go away", "the naïve U.N. in New York said no ."] * 3


def made(kind: str) -> Any:
    """A tokenizer of one of the kinds that large models have, learned from a few texts."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


KINDS: dict[str, Any] = {
    **{name: lambda name=name: load_tokenizer(find_model(name).location) for name in TINY},
    "bytes": lambda: made("bytes"),
    "metaspace": lambda: made("metaspace"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_begins_at_a_piece_of_its_own(kind: str) -> None:
    tokenizer, sentence = KINDS[kind](), sentence_of(WORDS)
    (pieces,) = tokenize_with_spans(tokenizer, [sentence.text])
    unknown = find_unknown_id(tokenizer)
    ids, firsts = align_words(pieces, sentence.text, sentence.spans, unknown)
    assert firsts == sorted(set(firsts)) and len(firsts) == len(WORDS) and firsts[0] == 0
    ends = [*firsts[1:], len(ids)]
    for word, first, end in zip(WORDS, firsts, ends, strict=True):
        own = ids[first:end]
        if own == [unknown]:
            continue
        alone = tokenizer(word, add_special_tokens=False)["input_ids"]
        behind = tokenizer(f"- {word}", add_special_tokens=False)["input_ids"]
        assert own == alone or own == behind[-len(own) :], word
    assert [token for token in ids if token != unknown] == [t for t in pieces.ids if t != unknown]


def test_a_word_that_the_tokenizer_drops_is_there_as_unknown() -> None:
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    sentence = sentence_of(["rain", "\x96", "storm"])
    (pieces,) = tokenize_with_spans(tokenizer, [sentence.text])
    ids, firsts = align_words(pieces, sentence.text, sentence.spans, tokenizer.unk_token_id)
    assert tokenizer.convert_ids_to_tokens(ids) == ["rain", "[UNK]", "storm"]
    assert firsts == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_frame_is_what_the_tokenizer_puts_around_a_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    frame = find_frame(tokenizer)
    (pieces,) = tokenize_with_spans(tokenizer, ["the dog was found"])
    whole = tokenizer("the dog was found")
    found = frame.around(pieces.ids)
    assert found["input_ids"] == whole["input_ids"]
    assert found.get("token_type_ids") == whole.get("token_type_ids")


def test_too_little_room_is_refused() -> None:
    frame = find_frame(load_tokenizer(find_model("tiny-bert").location))
    assert frame.room(3) == 1
    with pytest.raises(DataError, match=r"data.max_length: is 9, too few - use 10 or more"):
        frame.room(9, least=8)


def test_a_tokenizer_without_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(RecipeError, match=r"has no character offsets .* tokenizer.json"):
        tokenize_with_spans(Slow(), ["a"])  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(2, 40), st.data())
def test_each_piece_is_answered_where_most_is_around_it(
    length: int, room: int, data: st.DataObject
) -> None:
    among = list(split_windows(length, room, data.draw(st.integers(0, room - 1))))
    assert among[0][0] == 0 and among[-1][1] == length
    assert all(end - start == min(room, length) for start, end in among)
    chosen = [choose_window(place, among, length) for place in range(length)]
    assert chosen == sorted(chosen)
    for place, index in enumerate(chosen):
        contexts = [
            min(length if a == 0 else place - a, length if b == length else b - 1 - place)
            for a, b in among
            if a <= place < b
        ]
        start, end = among[index]
        assert start <= place < end
        left = length if start == 0 else place - start
        right = length if end == length else end - 1 - place
        assert min(left, right) == max(contexts)


def test_neighboring_windows_share_the_stride() -> None:
    assert list(split_windows(20, 10, 4)) == [(0, 10), (6, 16), (10, 20)]
    assert list(split_windows(10, 10, 4)) == [(0, 10)]
    assert list(split_windows(20, 10, 0)) == [(0, 10), (10, 20)]


def marked(spans: list[tuple[int, int]]) -> str:
    pieces = SubwordTokens([1, 2, 3, 4], [(0, 2), (3, 6), (7, 10), (11, 14)])
    ids, places = insert_markers(pieces, spans, [10, 11, 20, 21])
    assert [ids[place] for place in places] == [10, 11, 20, 21]
    return " ".join(map(str, ids))


def test_markers_stand_around_whole_pieces() -> None:
    assert marked([(0, 2), (11, 14)]) == "10 1 11 2 3 20 4 21"
    assert marked([(7, 14), (0, 6)]) == "20 1 2 21 10 3 4 11"
    assert marked([(0, 6), (7, 10)]) == "10 1 2 11 20 3 21 4"
    assert marked([(4, 5), (8, 9)]) == "1 10 2 11 20 3 21 4"  # inside of pieces
    assert marked([(2, 3), (7, 10)]) == "1 10 11 2 20 3 21 4"  # of what has no piece
    assert marked([(3, 4), (5, 6)]) == "1 10 20 2 11 21 3 4"  # within one piece


def test_what_is_next_to_the_markers_is_kept() -> None:
    assert keep_nearest([4, 6, 10, 12], 20, 30) == list(range(20))
    assert keep_nearest([4, 6, 10, 12], 20, 11) == list(range(3, 14))
    assert keep_nearest([4, 6, 10, 12], 20, 9) == list(range(4, 13))
    assert keep_nearest([0, 2, 30, 32], 40, 8) == [0, 1, 2, 3, 29, 30, 31, 32]
    assert set(keep_nearest([5, 15, 30, 45], 60, 8)) >= {5, 15, 30, 45}
