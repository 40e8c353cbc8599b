"""Random models of translation whose tokenizers have language codes."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    NllbTokenizer,
)

from support.conversations import PAIRS

WORDS = sorted({word for texts in PAIRS.values() for text in texts for word in text.split()})


SIZES: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


CODES = {"mbart": ("en_XX", "de_DE"), "m2m_100": ("eng_Latn", "deu_Latn")}


def model_of(kind: str, folder: Path) -> Path:
    """A random model of the kind with its tokenizer, as the hub holds one."""
    torch.manual_seed(0)
    if kind == "mbart":
        fixed = [(token, 0.0) for token in ("<unk>", "<s>", "</s>")]
        tokenizer: Any = MBart50Tokenizer(
            vocab=[*fixed, *((f"\u2581{word}", -1.0) for word in WORDS)]
        )
    else:
        fixed = ["<s>", "<pad>", "</s>", "<unk>", "\u2581"]
        letters = sorted({letter for word in WORDS for letter in word})
        vocabulary = {token: index for index, token in enumerate([*fixed, *letters])}
        tokenizer = NllbTokenizer(vocab=vocabulary, merges=[])
    made_of = (MBartConfig, MBartForConditionalGeneration)
    if kind == "m2m_100":
        made_of = (M2M100Config, M2M100ForConditionalGeneration)
    config = made_of[0](
        **SIZES,
        vocab_size=len(tokenizer),
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    made_of[1](config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
