"""Special tokens in users' texts: ordinary text for every kind of tokenizer, and said."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from peftkit.config.recipe import Recipe
from peftkit.errors import RecipeError
from peftkit.hub.resolve import find_model
from peftkit.hub.toy_models import SEGMENTED, SPECIAL, make_tokenizer
from peftkit.loading.model import load_tokenizer, quiet_transformers
from peftkit.preprocessing.tokenization import encode, noted
from peftkit.tasks.language_modeling.text_generation import TextGeneration
from peftkit.tasks.language_modeling.translation import Translation
from peftkit.tasks.question_answering.task import QuestionAnswering
from peftkit.tasks.text_classification import TextClassification
from peftkit.tasks.token_classification.task import TokenClassification
from peftkit.text.special_tokens import (
    encode_rendered,
    encode_text,
    escape_special_tokens,
    get_escaper,
    note_special_tokens,
    unescape_special_tokens,
)

ENDS = ["<unk>", "</s>", "<pad>", "[SEP]"]
NAMED = dict(zip(("unk_token", "eos_token", "pad_token", "sep_token"), ENDS, strict=True))
WORDS = ["the river rose </s> after three days of rain </s>now [SEP] or <pad> s/>", "< / > [ ] | _"]
PLAIN = ["the river rose", "after  three days, of rain"]


def trained(model: Any, trainer: Any, **parts: Any) -> Any:
    backend = Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator(WORDS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


@cache
def bytes_of_text() -> Any:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=300, special_tokens=ENDS, initial_alphabet=alphabet),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )


@cache
def sentence_pieces() -> Any:
    """As T5's and XLM-R's: special tokens are pieces of the vocabulary too."""
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=ENDS, unk_token="<unk>")
    return trained(models.Unigram(), trainer, pre_tokenizer=pre_tokenizers.Metaspace())


@cache
def merged_pieces() -> Any:
    """As Llama 2's."""
    blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    trainer = trainers.BpeTrainer(vocab_size=110, special_tokens=ENDS)
    model = models.BPE(unk_token="<unk>", fuse_unk=True)
    return trained(model, trainer, normalizer=normalizers.Sequence(blanks))


@cache
def word_pieces() -> Any:
    return make_tokenizer(SEGMENTED, SPECIAL)


@cache
def whole_words() -> Any:
    trainer = trainers.WordLevelTrainer(special_tokens=ENDS)
    blanks = pre_tokenizers.WhitespaceSplit()
    return trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizer=blanks)


KINDS = [bytes_of_text, sentence_pieces, merged_pieces, word_pieces, whole_words]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def inner(tokenizer: Any, text: str, **how: Any) -> list[int]:
    ids: list[int] = encode_text(tokenizer, [text], add_special_tokens=False, **how)["input_ids"][0]
    return ids


@every_kind
def test_a_special_token_in_a_text_is_read_as_text(kind: Callable[[], Any]) -> None:
    tokenizer = kind()
    for token in (tokenizer.eos_token, tokenizer.pad_token, tokenizer.sep_token):
        for text in (token, f"the river {token} rose", f"rose{token}rose", f"{token}{token}"):
            # of whole words an unknown one is the unknown token
            special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
            found = inner(tokenizer, text)
            assert found and not special & {*found}, (text, found)


@every_kind
def test_texts_without_special_tokens_have_the_tokens_that_they_had(
    kind: Callable[[], Any],
) -> None:
    tokenizer = kind()
    before = tokenizer(PLAIN)["input_ids"]
    assert encode_text(tokenizer, PLAIN)["input_ids"] == before
    beside = encode_text(tokenizer, [*PLAIN, tokenizer.eos_token])["input_ids"]
    assert beside[:2] == before == tokenizer(PLAIN)["input_ids"]
    pairs = encode_text(tokenizer, [*PLAIN, "[SEP]"], [*PLAIN[::-1], "rose"])
    assert pairs["input_ids"][:2] == tokenizer(PLAIN, PLAIN[::-1])["input_ids"]


@every_kind
def test_what_a_template_writes_stays_special_around_texts_that_are_not(
    kind: Callable[[], Any],
) -> None:
    tokenizer = kind()
    sep, eos = tokenizer.sep_token, tokenizer.eos_token
    text = f"the {sep} rose {eos}"
    turns = f"{sep} {escape_special_tokens(tokenizer, text)} {eos}"
    found = encode_rendered(tokenizer, [turns, f"{sep} rose"], add_special_tokens=False)
    ids, other = found["input_ids"]
    special = {tokenizer.sep_token_id, tokenizer.eos_token_id}
    assert [i for i in ids if i in special] == [tokenizer.sep_token_id, tokenizer.eos_token_id]
    assert ids[0] == tokenizer.sep_token_id and ids[-1] == tokenizer.eos_token_id
    assert {*ids} <= {*tokenizer.get_vocab().values()}
    assert other == tokenizer(f"{sep} rose", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", [bytes_of_text, word_pieces, whole_words])
def test_places_are_those_in_the_text_as_it_was_written(kind: Callable[[], Any]) -> None:
    tokenizer = kind()
    sep = tokenizer.sep_token
    how: dict[str, Any] = {"add_special_tokens": False, "return_offsets_mapping": True}
    rendered = f"{sep} {escape_special_tokens(tokenizer, f'the {sep} rose')}"
    said = unescape_special_tokens(tokenizer, rendered)
    assert said == f"{sep} the {sep} rose" and len(said) == len(rendered)
    found = encode_rendered(tokenizer, [rendered], **how)["offset_mapping"][0]
    covered = "".join(said[start:end] for start, end in found)
    assert covered.replace(" ", "") == said.replace(" ", "")
    assert said[slice(*found[0])] == sep


@pytest.mark.parametrize(
    "architecture", ["t5", "deberta-v2", "llama", "marian", "roberta", "qwen2"]
)
def test_tokenizers_as_published_models_have_them_read_special_tokens_as_text(
    architecture: str, varied: Callable[..., Path]
) -> None:
    files = "slow" if architecture == "marian" else "fast"
    tokenizer = load_tokenizer(str(varied(architecture, files=files)))
    known = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    for token in {*tokenizer.all_special_tokens} - {tokenizer.unk_token}:
        found = inner(tokenizer, f"river {token} and{token}")
        assert not known & {*found} and len(found) > 4, (token, found)
    text = "The river rose and 3 days of rain"
    assert inner(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_in_python_cannot_mix_both_and_says_so(varied: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(str(varied("marian", files="slow")))
    source = escape_special_tokens(tokenizer, "the </s> river")
    (read,) = encode_rendered(tokenizer, [source], add_special_tokens=False)["input_ids"]
    assert read and tokenizer.eos_token_id not in read
    with pytest.raises(RecipeError, match="cannot encode special tokens both"):
        encode_rendered(tokenizer, [f"<pad> {source}"])


def test_a_text_cannot_forge_a_special_token_with_what_stands_for_one() -> None:
    tokenizer = sentence_pieces()
    forged = escape_special_tokens(tokenizer, "</s>")
    assert forged != "</s>" and not {1, *range(len(tokenizer), 999)} & {*inner(tokenizer, forged)}
    assert not {1, *range(len(tokenizer), 999)} & {*inner(tokenizer, f"{forged} </s>")}
    again = escape_special_tokens(tokenizer, forged)
    ids = encode_rendered(tokenizer, [f"[SEP]{again}"], add_special_tokens=False)["input_ids"][0]
    assert ids[0] == tokenizer.sep_token_id and tokenizer.eos_token_id not in ids


def test_the_tokenizer_itself_is_left_as_it_was() -> None:
    tokenizer = sentence_pieces()
    size, written = len(tokenizer), tokenizer.backend_tokenizer.to_str()
    inner(tokenizer, "rose </s>")
    assert (len(tokenizer), tokenizer.backend_tokenizer.to_str()) == (size, written)
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id


def test_every_task_reads_special_tokens_in_its_rows_as_text() -> None:
    tokenizer = load_tokenizer(find_model("tiny-bert").location)
    sep = tokenizer.sep_token_id
    one = TextClassification().encode({"text": ["sport [SEP] food"]}, tokenizer, ("a", "b"), 99)
    assert one["input_ids"][0].count(sep) == 1
    cut = TextClassification().encode(
        {"text": ["sport [SEP] food " * 9]}, tokenizer, ("a", "b"), 20
    )
    assert cut["input_ids"][0].count(sep) == 1 and len(cut["input_ids"][0]) == 20
    words = {"tokens": [["sport", "[SEP]", "food"]], "tags": [["A", "B", "A"]]}
    tags = TokenClassification(scheme="none").encode(words, tokenizer, ("A", "B"), 99)
    assert tags["input_ids"][0].count(sep) == 1
    assert [label for label in tags["labels"][0] if label >= 0] == [0, 1, 0]
    rows = {"question": ["which [SEP]?"], "context": ["sport [SEP] food"]}
    asked = QuestionAnswering().encode(rows, tokenizer, (), 64)
    assert asked["input_ids"][0].count(sep) == 2
    context = asked["input_ids"][0][asked["context"][0] :]
    assert sep not in context[: len(asked["starts"][0])]
    told = TextGeneration().encode({"text": ["sport [SEP] food"]}, tokenizer, (), 99)
    assert told["input_ids"][0].count(sep) == 1 == told["labels"][0].count(sep)  # its own end
    assert sep not in TextGeneration().prompts({"text": ["a [SEP]"]}, tokenizer, 99)[0]


def test_an_encoder_reads_the_prompts_own_special_tokens_and_none_of_a_source() -> None:
    tokenizer = load_tokenizer(find_model("tiny-bart").location)
    tokenizer.feeds_encoder = True
    task = Translation(prompt="[MASK] {source}")
    rows = {"source": ["food [MASK] [SEP]"], "target": ["sport [SEP] food"]}
    found = task.encode(rows, tokenizer, (), 99)
    read, said = found["input_ids"][0], found["labels"][0]
    assert (read.count(tokenizer.mask_token_id), read.count(tokenizer.sep_token_id)) == (1, 1)
    assert said.count(tokenizer.sep_token_id) == 1 and said[-1] == tokenizer.sep_token_id
    assert task.prompts(rows, tokenizer, 99) == [read]


def test_a_classifier_that_reads_the_end_of_a_text_takes_one_that_speaks_of_it() -> None:
    """BART's head refuses rows with another number of end tokens than their neighbors."""
    source = find_model("tiny-bart")
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(source.location)
    tokenizer = load_tokenizer(source.location)
    rows = {"text": ["food [SEP] food", "food sport of the food"]}
    ids = TextClassification().encode(rows, tokenizer, ("a", "b"), 99)["input_ids"]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    assert model(**batch).logits.shape[0] == 2


def test_rows_with_special_tokens_are_told_of_once_and_markers_are_none(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    rows = [f"{label}\t{label} text {n}{' [SEP]' * (n == 3)}" for n in range(40) for label in "ab"]
    (tmp_path / "rows.tsv").write_text("\n".join(["label\ttext", *rows]))
    recipe = Recipe.load("lora_tiny", f"data={{kind: files, path: {tmp_path / 'rows.tsv'}}}")
    data = recipe.data.resolve()
    splits, source = recipe.splits(data), find_model(recipe.model)
    tokenizer = load_tokenizer(source.location, recipe.task)
    examples = encode(recipe, splits, tokenizer, source, ("a", "b"))
    held = sum("[SEP]" in text for text in splits.train["text"])
    notes = noted(recipe, splits, examples, tokenizer, ("a", "b")).notes
    told = [note for note in notes if "special token" in note]
    assert held and told == [
        f"train: {held} of {len(splits.train)} rows contain a special token of the tokenizer "
        "('[SEP]'), which is read as ordinary text"
    ]
    assert note_special_tokens(tokenizer, [["a [SEP]", "b"]], 2, {"[SEP]"}) == ()
    cells = [[{"role": "user", "content": "of [CLS]"}], ["a", "[PAD]"]]
    assert "2 of 2 rows" in note_special_tokens(tokenizer, [cells], 2)[0]
    assert get_escaper(tokenizer) is get_escaper(tokenizer)
