"""Small tokenizers of each kind, as the files that published models come with."""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from support.varied_rows import SCRIPTS, texts

DECODERS = ("llama", "mistral", "qwen2", "gpt2")
ENCLOSED = ("bert", "roberta", "deberta-v2", "bart")
"""Whose texts stand between a first and a last token, always."""
Kind = Literal["wordpiece", "bytes", "sentencepiece"]
SPECIAL: dict[str, dict[str, str]] = {
    "wordpiece": {
        "pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]",
        "bos": "[CLS]", "eos": "[SEP]",
    },
    "deberta-v2": {
        "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]",
        "bos": "[CLS]", "eos": "[SEP]",
    },
    "roberta": {
        "bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>",
        "cls": "<s>", "sep": "</s>",
    },
    "bytes": {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|padding|>"},
    "t5": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "marian": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "sentencepiece": {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"},
}  # fmt: skip
"""Special tokens of a style, in the order of their ids."""


@cache
def corpus() -> tuple[str, ...]:
    """What vocabularies are learned from: texts in every script."""
    return tuple(text for script in SCRIPTS for text in texts(script, 60, seed=99))


@cache
def word_pieces(special: tuple[str, ...]) -> tuple[str, ...]:
    """The vocabulary in the order of its ids."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=400, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    ids = tokenizer.get_vocab()
    return tuple(sorted(ids, key=lambda word: ids[word]))


@cache
def byte_pairs(special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=480,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]


@cache
def sentence_pieces(style: str) -> bytes:
    """A sentencepiece model, with ids as the style's published ones have them."""
    as_in: dict[str, dict[str, Any]] = {
        "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        "deberta-v2": {
            "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
            "pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]",
        },
        "sentencepiece": {"model_type": "bpe", "byte_fallback": True},
    }  # fmt: skip
    to = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=to,
        vocab_size=700 if style == "sentencepiece" else 400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **as_in.get(style, {}),
    )
    return to.getvalue()


def style_of(architecture: str, kind: Kind) -> str:
    """Which of `SPECIAL` a model of the architecture has."""
    if kind == "sentencepiece" and architecture in ("t5", "marian", "deberta-v2"):
        return architecture
    return "roberta" if kind == "bytes" and architecture not in DECODERS else kind


def slow_files(folder: Path, architecture: str, kind: Kind, special: Sequence[str]) -> None:
    """Write the vocabulary as the architecture's own class reads it, without tokenizer.json."""
    if kind == "wordpiece":
        (folder / "vocab.txt").write_text("\n".join(word_pieces(tuple(special))) + "\n", "utf-8")
    elif kind == "bytes":
        vocabulary, merges = byte_pairs(tuple(special))
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    elif architecture == "marian":
        write_marian(folder)
    else:
        (folder / SPM_FILES[architecture]).write_bytes(
            sentence_pieces(style_of(architecture, kind))
        )


SPM_FILES = {
    "deberta-v2": "spm.model", "t5": "spiece.model",
    "llama": "tokenizer.model", "mistral": "tokenizer.model",
}  # fmt: skip


def write_marian(folder: Path) -> None:
    """Two sentencepiece models, and one vocabulary whose ids are neither's."""
    model = sentence_pieces("marian")
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model)
    reader = sentencepiece.SentencePieceProcessor(model_proto=model)
    known = [reader.id_to_piece(index) for index in range(reader.get_piece_size())]
    words = sorted(set(known) - {"<unk>", "<s>", "</s>"})
    ids = {word: index for index, word in enumerate(["</s>", "<unk>", *words, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), "utf-8")


def built(architecture: str, kind: Kind, special: dict[str, str], bos: bool) -> Any:
    """A tokenizer of the kind for an architecture whose own class is of another."""
    tokens = tuple(dict.fromkeys(special.values()))
    if kind == "wordpiece":
        ids = {word: index for index, word in enumerate(word_pieces(tokens))}
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix="##")
    else:
        ids, merges = byte_pairs(tokens)
        tokenizer = Tokenizer(models.BPE(ids, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    first = special["bos"] if bos or architecture in ENCLOSED else None
    last = special["eos"] if architecture not in DECODERS else None
    around = [token for token in (first, last) if token]
    single = [token for token in (first, "$A", last) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, "$B", *([last] if last else [])],
        special_tokens=[(token, ids[token]) for token in around],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in special.items()},
    )
