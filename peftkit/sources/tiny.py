"""Tiny models with random weights, made on the spot: for trying things in seconds on a CPU."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from peftkit.sources.source import Source, cache_folder, model_files, sha256_of

VERSION = 2
"""Part of the folder's name: count it up when the models change."""
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 130,
    "initializer_range": 0.1,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
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
}
"""Name to architecture and what differs from `SHAPE`."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_model(name: str) -> Source:
    """The tiny model called `name`, made in the cache when it is first asked for."""
    folder = cache_folder() / "tiny" / f"{name}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            make(name, folder)
    return Source(
        asked=name,
        used=name,
        origin="synthetic",
        location=str(folder),
        identity=f"sha256:{sha256_of(*model_files(folder))}",
        note="a tiny model with random weights",
    )


def make(name: str, folder: Path) -> None:
    """Write the model and its tokenizer to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    model_type, differences = TINY[name]
    tokenizer = make_tokenizer(SEGMENTED if model_type in ("bert", "electra") else UNSEGMENTED)
    ids = {f"{k}_token_id": tokenizer.convert_tokens_to_ids(v) for k, v in ENDS.items()}
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


UNSEGMENTED = ["input_ids", "attention_mask"]
SEGMENTED = ["input_ids", "token_type_ids", "attention_mask"]


def make_tokenizer(gives: list[str]) -> Any:
    """WordPiece over the words of the synthetic data, letters for all else; it `gives` columns."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from peftkit.data.synthetic import vocabulary

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = [*SPECIAL, *letters, *[f"##{letter}" for letter in letters]]
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
