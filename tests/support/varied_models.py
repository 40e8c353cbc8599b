"""Tiny models that differ as published ones do: in shape, tokenizer files, padding, head and chat.

A folder is made from a `VariedModel` in about a tenth of a second: random weights, real files.
"""

import json
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from peftkit.hub.toy_models import BART, GROUPED, RELATIVE, SHAPE, T5
from peftkit.loading.model import quiet_transformers
from support.pairwise import Rule, broken
from support.varied_rows import LABELS
from support.varied_tokenizers import DECODERS, SPECIAL, Kind, built, slow_files, style_of

Architecture = Literal[
    "llama", "mistral", "qwen2", "gpt2",
    "bert", "roberta", "deberta-v2",
    "t5", "bart", "marian",
]  # fmt: skip
Pad = Literal["own", "eos", "absent", "beyond"]
Head = Literal["none", "reordered", "other", "fewer", "problem_type"]
Chat = Literal["none", "eos", "turns", "given", "marked", "marked_short"]
ENCODERS = ("bert", "roberta", "deberta-v2")
WITH_ENCODER = ("t5", "bart", "marian")
OWN_KIND: dict[str, Kind] = {
    **dict.fromkeys(("llama", "mistral", "t5", "marian", "deberta-v2"), "sentencepiece"),
    **dict.fromkeys(("gpt2", "qwen2", "roberta", "bart"), "bytes"),
    "bert": "wordpiece",
}
"""The kind of tokenizer that transformers' class for the architecture reads."""
CLASSES = {
    "llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "qwen2": "Qwen2Tokenizer",
    "gpt2": "GPT2Tokenizer", "bert": "BertTokenizer", "roberta": "RobertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer", "t5": "T5Tokenizer", "bart": "BartTokenizer",
    "marian": "MarianTokenizer",
}  # fmt: skip
EXTRA = "extra_special_tokens"
TURNS = ("<|im_start|>", "<|im_end|>")
"""Special tokens that open and end a turn; neither is the tokenizer's end of a text."""
OPENING = "<|im_start|>{{ message.role }}\n"
ASKING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for message in messages %}"
MARKED = (
    EACH + OPENING + "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
)
TEMPLATES: dict[str, str] = {
    "eos": EACH + "[{{ message.role }}] {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "turns": EACH + OPENING + "{{ message.content }}<|im_end|>\n{% endfor %}" + ASKING,
    "marked": MARKED + "<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}\n{% endfor %}" + ASKING,
    "marked_short": MARKED + "{% endgeneration %}{% else %}{{ message.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}" + ASKING,
}
"""Chat templates; of a model with `chat="given"` the recipe gives `turns`."""
HEADS: dict[Head, tuple[str, ...]] = {
    "reordered": LABELS[::-1],
    "other": ("later", "never", "now"),
    "fewer": LABELS[:2],
    "problem_type": LABELS,
}


@dataclass(frozen=True)
class VariedModel:
    """A tiny model by what it differs in. `faults` says what is not to be had."""

    architecture: Architecture = "llama"
    tokenizer: Kind | None = None
    """None: the architecture's own."""
    files: Literal["fast", "slow"] = "fast"
    """Whether there is a tokenizer.json, or only what it is made from."""
    tied: bool = True
    """Whether the output layer shares the embeddings' weights."""
    pad: Pad = "own"
    """The padding token: one for that alone, the end of a text, none, or one that the tokenizer
    counts and the embeddings have no row for."""
    head: Head = "none"
    """A classification head, with its labels in another order than the rows' sorted ones, with
    other labels, with fewer, or with those of the rows and `problem_type` for several at once."""
    chat: Chat = "none"
    """The chat template: turns end in eos, or in a token of their own; `given`: such tokens, but no
    template; with the answers marked; with the answers but not their ends marked."""
    bos: bool = True
    """Whether the tokenizer puts a token before every text."""

    @property
    def kind(self) -> Kind:
        """The tokenizer's kind."""
        return self.tokenizer or OWN_KIND[self.architecture]

    @property
    def own(self) -> bool:
        """Whether transformers' class for the architecture reads this kind of tokenizer."""
        return self.kind == OWN_KIND[self.architecture]

    def __str__(self) -> str:
        differing = [f for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return "-".join(
            [self.architecture, *(f"{f.name}={getattr(self, f.name)}" for f in differing)]
        )


RULES: dict[str, Rule] = {
    "sentencepiece is for the architectures whose class reads it": (
        lambda architecture, tokenizer: (
            tokenizer != "sentencepiece" or OWN_KIND[architecture] == "sentencepiece"
        )
    ),
    "files without tokenizer.json are read by the architecture's own class": (
        lambda architecture, tokenizer, files: (
            files == "fast" or tokenizer == OWN_KIND[architecture]
        )
    ),
    "transformers has no fast tokenizer for Marian's files": (
        lambda architecture, tokenizer, files: (
            (architecture, tokenizer, files) != ("marian", "sentencepiece", "fast")
        )
    ),
    # AutoTokenizer 5.23 opens it as Qwen2's own class, whatever tokenizer.json holds
    "Qwen2's tokenizer is of bytes": (
        lambda architecture, tokenizer: architecture != "qwen2" or tokenizer == "bytes"
    ),
    "padding is a decoder's to choose": (
        lambda architecture, pad: architecture in DECODERS or pad == "own"
    ),
    "chat is for decoders": lambda architecture, chat: architecture in DECODERS or chat == "none",
    "a first token is a decoder's to choose": (
        lambda architecture, bos: architecture in DECODERS or bos
    ),
    "a plain encoder has no output layer": (
        lambda architecture, tied: architecture not in ENCODERS or tied
    ),
    "a classifier has no output layer": lambda head, tied: head == "none" or tied,
    "Marian does not classify": lambda architecture, head: (
        architecture != "marian" or head == "none"
    ),
    "a classifier does not chat": lambda head, chat: "none" in (head, chat),
}
"""Which differences go together."""


def faults(variant: VariedModel) -> list[str]:
    """Why there is no such model; empty where there is."""
    return broken({**vars(variant), "tokenizer": variant.kind}, RULES)


def build(variant: VariedModel, folder: Path) -> Path:
    """The folder of `variant` below `folder`, as one is downloaded; made when first asked for.

    Raises `ValueError` where there is no such model.
    """
    if wrong := faults(variant):
        raise ValueError(f"{variant}: {'; '.join(wrong)}")
    to = folder / str(variant)
    if not to.is_dir():
        beside = to.with_suffix(".partial")
        beside.mkdir(parents=True)
        with quiet_transformers():
            tokenizer = write_tokenizer(variant, beside)
            write_model(variant, tokenizer, beside)
        beside.rename(to)
    return to


def write_tokenizer(variant: VariedModel, to: Path) -> Any:
    """The tokenizer, its files written."""
    special = dict(SPECIAL[style_of(variant.architecture, variant.kind)])
    if variant.pad != "own":
        del special["pad"]
    if variant.own:
        tokenizer = own_tokenizer(variant, special, to)
    else:
        tokenizer = built(variant.architecture, variant.kind, special, variant.bos)
    if variant.chat not in ("none", "eos"):
        tokenizer.add_special_tokens({EXTRA: list(TURNS)})
    if variant.pad == "eos":
        tokenizer.pad_token = tokenizer.eos_token
    if variant.pad == "beyond":
        tokenizer.add_special_tokens({"pad_token": "<|added_padding|>"})
    tokenizer.chat_template = TEMPLATES.get(variant.chat)
    if variant.files == "slow":
        describe(tokenizer, to)
    else:
        for path in to.iterdir():
            path.unlink()
        tokenizer.save_pretrained(to)
    return tokenizer


def own_tokenizer(variant: VariedModel, special: dict[str, str], to: Path) -> Any:
    """The architecture's own class, from its vocabulary files in `to`."""
    named: dict[str, Any] = {f"{name}_token": token for name, token in special.items()}
    named |= {"tokenizer_class": CLASSES[variant.architecture], "model_max_length": 128}
    if variant.architecture in DECODERS:
        named["add_bos_token"] = variant.bos
    if variant.architecture == "t5":
        named["extra_ids"] = 4
    if variant.architecture == "bert":
        named["do_lower_case"] = False  # which takes Devanagari's vowels away
    tokens = list(dict.fromkeys(special.values()))
    slow_files(to, variant.architecture, variant.kind, tokens)
    (to / "tokenizer_config.json").write_text(json.dumps(named))
    config = AutoConfig.for_model(variant.architecture)
    return AutoTokenizer.from_pretrained(to, config=config)


def describe(tokenizer: Any, to: Path) -> None:
    """Complete tokenizer_config.json, as versions of transformers before the fifth wrote it."""
    path = to / "tokenizer_config.json"
    said = json.loads(path.read_text())
    named = {key: token for key, token in tokenizer.special_tokens_map.items() if key != EXTRA}
    added = {
        str(index): {"content": token.content, "special": token.special}
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    said |= {**named, "added_tokens_decoder": added}
    if tokenizer.extra_special_tokens:
        said["additional_special_tokens"] = tokenizer.extra_special_tokens
    if tokenizer.chat_template is not None:
        said["chat_template"] = tokenizer.chat_template
    path.write_text(json.dumps(said, ensure_ascii=False))


def write_model(variant: VariedModel, tokenizer: Any, to: Path) -> None:
    """Configuration, weights and generation configuration."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(zlib.crc32(str(variant).encode()))
        model = auto_class(variant).from_config(configuration(variant, tokenizer))
        if is_t5_untied := variant.architecture == "t5" and not variant.tied:
            model.lm_head = torch.nn.Linear(*model.lm_head.weight.shape[::-1], bias=False)
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:  # Marian's are computed when it is loaded
                parameter.add_(0.03 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(0, 0.5)
        if model.can_generate():  # or a text of random weights would hardly ever end
            ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(TURNS[1:])]
            rows = [index for index in ends if index not in (None, tokenizer.unk_token_id)]
            model.get_output_embeddings().weight[rows] *= 2.5
    if model.can_generate():
        model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(to)
    if is_t5_untied:  # transformers 5.23 reads what its own T5Config never writes
        path = to / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))


def auto_class(variant: VariedModel) -> Any:
    """The class that the weights are saved from."""
    if variant.head != "none":
        return AutoModelForSequenceClassification
    if variant.architecture in ENCODERS:
        return AutoModel
    return AutoModelForSeq2SeqLM if variant.architecture in WITH_ENCODER else AutoModelForCausalLM


DIFFERENCES: dict[str, dict[str, Any]] = {
    "llama": GROUPED, "mistral": {**GROUPED, "sliding_window": 8}, "qwen2": GROUPED,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 130},
    "bert": {}, "roberta": {"type_vocab_size": 1}, "deberta-v2": RELATIVE,
    "t5": T5, "bart": BART, "marian": BART,
}  # fmt: skip


def configuration(variant: VariedModel, tokenizer: Any) -> Any:
    """The model's configuration, its ids those of the tokenizer."""
    ids: dict[str, Any] = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    if variant.architecture in WITH_ENCODER:
        start = "eos" if variant.architecture == "bart" else "pad"
        ids["decoder_start_token_id"] = ids[f"{start}_token_id"]
    rows = len(tokenizer) - (variant.pad == "beyond")
    if variant.pad == "beyond":
        ids["pad_token_id"] = None
    labels: dict[str, Any] = {}
    if variant.head != "none":
        names = HEADS[variant.head]
        labels = {
            "id2label": dict(enumerate(names)),
            "label2id": {n: i for i, n in enumerate(names)},
        }
    if variant.head == "problem_type":
        labels["problem_type"] = "multi_label_classification"
    return AutoConfig.for_model(
        variant.architecture,
        **{**SHAPE, **DIFFERENCES[variant.architecture]},
        **{"vocab_size": rows, "tie_word_embeddings": variant.tied, **ids, **labels},
    )
