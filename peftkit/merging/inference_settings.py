"""Writes the settings by which transformers reads and answers as a run does."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.storage.atomic_files import write_json, write_text
from peftkit.tasks.base import Task

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from peftkit.tasks.language_modeling.base import LanguageModeling

TOKENIZER_CONFIG = "tokenizer_config.json"


def write_inference_settings(task: Task, base: Path, folder: Path) -> None:
    """Set padding token, reading of special tokens in texts, chat template and generation
    configuration in `folder` to those of a run of `task` on `base`. The tokenizer's files in
    `folder` are copies of those in `base`.
    """
    generates = task.reading == "labels"
    if not is_causal_model(task, base) and not task.markers():
        # as `special_tokens.encode_text` reads a text
        change_settings(folder, split_special_tokens=True)
    if not generates and has_padding_token(base, folder):
        return
    from peftkit.loading.model import load_tokenizer

    tokenizer = load_tokenizer(str(base), task)
    if tokenizer.pad_token is not None:
        change_settings(folder, pad_token=str(tokenizer.pad_token))
    if generates:
        write_generation_settings(task, tokenizer, base, folder)  # type: ignore[arg-type]


def write_generation_settings(
    task: "LanguageModeling", tokenizer: Any, base: Path, folder: Path
) -> None:
    """Write generation configuration, chat template and languages of a language model."""
    training_generation_config(task, tokenizer, base).save_pretrained(folder)
    if task.first_id(tokenizer) is not None:  # of a tokenizer with languages
        change_settings(folder, src_lang=tokenizer.src_lang, tgt_lang=tokenizer.tgt_lang)
    template, own = task.chat_template(tokenizer), tokenizer.chat_template
    if template is not None and template != (own.get("default") if isinstance(own, dict) else own):
        write_template(template, folder)


def is_causal_model(task: Task, base: Path) -> bool:
    """Whether it is a causal language model, whose prompts may have special tokens: those of a chat
    template, or a first one."""
    is_seq2seq = read_settings(base / "config.json").get("is_encoder_decoder", False)
    return task.reading == "labels" and not is_seq2seq


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file; empty if there is no file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def change_settings(folder: Path, without: str | None = None, **settings: Any) -> None:
    """Change the tokenizer's settings, and drop the one named `without`."""
    path = folder / TOKENIZER_CONFIG
    kept = {key: value for key, value in read_settings(path).items() if key != without}
    write_json(path, {**kept, **settings})


def has_padding_token(base: Path, folder: Path) -> bool:
    """Whether the tokenizer's files name a padding token that `base` has an embedding for; False
    if its id is not in the files."""
    settings, config = read_settings(folder / TOKENIZER_CONFIG), read_settings(base / "config.json")
    named = settings.get("pad_token") or read_settings(folder / "special_tokens_map.json").get(
        "pad_token"
    )
    token = named["content"] if isinstance(named, dict) else named
    added = read_settings(folder / "tokenizer.json").get("added_tokens", [])
    ids = {each["content"]: each["id"] for each in added}
    known = settings.get("added_tokens_decoder", {}).items()
    ids |= {each["content"]: int(index) for index, each in known}
    count = config.get("vocab_size")
    return token is not None and (count is None or ids.get(token, count) < count)


def write_template(template: str, folder: Path) -> None:
    """Replace the chat template."""
    (folder / "chat_template.json").unlink(missing_ok=True)  # of transformers before version 5
    change_settings(folder, without="chat_template")
    write_text(folder / "chat_template.jinja", template)


def training_generation_config(
    task: "LanguageModeling", tokenizer: Any, base: Path
) -> "GenerationConfig":
    """The generation configuration by which `peftkit predict` generates with a run of `task` on
    `base`."""
    from transformers import AutoConfig, GenerationConfig

    from peftkit.evaluation.generation import configured_end_ids, generation_config
    from peftkit.tasks.language_modeling.generation_settings import Generation

    config = AutoConfig.from_pretrained(base)
    own = GenerationConfig.from_model_config(config)
    if (base / "generation_config.json").is_file():
        own = GenerationConfig.from_pretrained(base)
    ends = sorted({*task.stop_ids(tokenizer), *configured_end_ids(own, config)})
    how, first = task.generate or Generation(), task.first_id(tokenizer)
    return generation_config(own, how, ends, tokenizer.pad_token_id, first)
