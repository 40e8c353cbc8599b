"""Tiny models with random weights, created on first use, for trying things in seconds on a CPU."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from peftkit.hub.source import Source, cache_folder, model_files, sha256_of
from peftkit.text.synthetic_words import vocabulary

VERSION = 2
"""Part of the folder's name: increase it when the models change."""
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 130,
    "initializer_range": 0.1,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
WINDOWS = {"query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2}
"""Gemma 3 alternates its layers: here the first attends to 8 tokens back, the second to all."""
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
"""Differences between DeBERTa v3 and v1."""
T5 = {"d_model": 64, "d_kv": 16, "num_layers": 2, "num_heads": 4, "d_ff": 128}
BART = {
    "d_model": 64,
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
    "init_std": 0.1,
}
DISTILBERT = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-bert": ("bert", {}),
    "tiny-roberta": ("roberta", {"type_vocab_size": 1}),
    "tiny-electra": ("electra", {"embedding_size": 32}),
    "tiny-distilbert": ("distilbert", DISTILBERT),
    "tiny-gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 130}),
    "tiny-llama": ("llama", GROUPED),
    "tiny-mistral": ("mistral", {**GROUPED, "sliding_window": 8}),
    "tiny-qwen2": ("qwen2", GROUPED),
    "tiny-qwen3": ("qwen3", GROUPED),
    "tiny-gemma3": ("gemma3_text", {**GROUPED, **WINDOWS}),
    "tiny-albert": ("albert", {"embedding_size": 32}),
    "tiny-deberta-v3": ("deberta-v2", RELATIVE),
    "tiny-modernbert": ("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "tiny-mpnet": ("mpnet", {}),
    "tiny-t5": ("t5", T5),
    "tiny-bart": ("bart", BART),
    "tiny-marian": ("marian", BART),
}
"""By name: the architecture and its differences from `SHAPE`."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PADDING_IS_ONE = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
"""For MPNet, whose code counts positions from padding id 1, whatever the configuration."""


def tiny_model(name: str) -> Source:
    """Return the tiny model called `name`, created in the cache on first use."""
    folder = cache_folder() / "tiny" / f"{name}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            make_model(name, folder)
    return Source(
        requested=name,
        used=name,
        origin="synthetic",
        location=str(folder),
        identity=f"sha256:{sha256_of(*model_files(folder))}",
        note="a tiny model with random weights",
    )


def make_model(name: str, folder: Path) -> None:
    """Write the model and its tokenizer to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    model_type, differences = TINY[name]
    tokenizer = make_tokenizer(
        SEGMENTED if model_type in ("bert", "electra", "albert") else UNSEGMENTED,
        PADDING_IS_ONE if model_type == "mpnet" else SPECIAL,
    )
    tokens = {**ENDS, **STARTS.get(model_type, {})}
    ids = {f"{k}_token_id": tokenizer.convert_tokens_to_ids(v) for k, v in tokens.items()}
    config = AutoConfig.for_model(
        model_type, **{**SHAPE, **differences}, vocab_size=len(tokenizer), **ids
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
    disable_progress_bar()
    beside = folder.with_suffix(".partial")
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.replace(folder)


ENDS = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]"}
STARTS = {
    "modernbert": {"cls": "[CLS]", "sep": "[SEP]"},
    "t5": {"decoder_start": "[PAD]"},
    "bart": {"decoder_start": "[SEP]", "forced_eos": "[SEP]"},
    "marian": {"decoder_start": "[PAD]", "forced_eos": "[SEP]"},
}
"""Special tokens of an architecture, as in its published models."""

UNSEGMENTED = ["input_ids", "attention_mask"]
SEGMENTED = ["input_ids", "token_type_ids", "attention_mask"]


def make_tokenizer(gives: list[str], special: list[str]) -> Any:
    """Return a WordPiece tokenizer over the words of the synthetic data, with letters for other
    text; it returns the columns `gives`.

    The `special` tokens have the first ids, in this order.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = [*special, *letters, *[f"##{letter}" for letter in letters]]
    words += [word for word in vocabulary() if word not in words]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=gives,
    )
