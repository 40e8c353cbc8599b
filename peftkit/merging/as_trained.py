"""As trained: what transformers must know beside the weights to read and answer as a run does."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.storage.atomic_files import write_json, write_text
from peftkit.tasks.base import Task

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from peftkit.tasks.language_modeling.base import LanguageModeling

TOKENIZER_CONFIG = "tokenizer_config.json"


def write_as_trained(task: Task, base: Path, folder: Path) -> None:
    """Complete the files beside the weights in `folder`, where the tokenizer's are copies of those
    in `base`: padding token, how special tokens in texts are read, chat template and generation
    configuration are those that a run of `task` on `base` had.
    """
    generates = task.reading == "labels"
    if not reads_template(task, base) and not task.markers():
        # as `special_tokens.encode_text` reads a text
        change_settings(folder, split_special_tokens=True)
    if not generates and pads_itself(base, folder):
        return
    from peftkit.loading.model import load_tokenizer

    tokenizer = load_tokenizer(str(base), task)
    if tokenizer.pad_token is not None:
        change_settings(folder, pad_token=str(tokenizer.pad_token))
    if generates:
        write_generating(task, tokenizer, base, folder)  # type: ignore[arg-type]


def write_generating(task: "LanguageModeling", tokenizer: Any, base: Path, folder: Path) -> None:
    """Write what a language model's texts begin with and end in: generation configuration, chat
    template and languages."""
    generation_as_trained(task, tokenizer, base).save_pretrained(folder)
    if task.first_id(tokenizer) is not None:  # which tells the tokenizer the languages
        change_settings(folder, src_lang=tokenizer.src_lang, tgt_lang=tokenizer.tgt_lang)
    template, own = task.chat_template(tokenizer), tokenizer.chat_template
    if template is not None and template != (own.get("default") if isinstance(own, dict) else own):
        write_template(template, folder)


def reads_template(task: Task, base: Path) -> bool:
    """Whether what the model reads is text that a template wrote, or begins with special tokens:
    a causal language model's is."""
    encodes = settings_in(base / "config.json").get("is_encoder_decoder", False)
    return task.reading == "labels" and not encodes


def settings_in(path: Path) -> dict[str, Any]:
    """What a file of settings says; nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def change_settings(folder: Path, without: str | None = None, **settings: Any) -> None:
    """Change the tokenizer's settings, and leave one of them out."""
    path = folder / TOKENIZER_CONFIG
    said = {key: value for key, value in settings_in(path).items() if key != without}
    write_json(path, {**said, **settings})


def pads_itself(base: Path, folder: Path) -> bool:
    """Whether the tokenizer's files name a padding token, and one that `base` has an embedding for:
    False where they do not tell its number."""
    said, rows = settings_in(folder / TOKENIZER_CONFIG), settings_in(base / "config.json")
    named = said.get("pad_token") or settings_in(folder / "special_tokens_map.json").get(
        "pad_token"
    )
    token = named["content"] if isinstance(named, dict) else named
    added = settings_in(folder / "tokenizer.json").get("added_tokens", [])
    ids = {each["content"]: each["id"] for each in added}
    known = said.get("added_tokens_decoder", {}).items()
    ids |= {each["content"]: int(index) for index, each in known}
    count = rows.get("vocab_size")
    return token is not None and (count is None or ids.get(token, count) < count)


def write_template(template: str, folder: Path) -> None:
    """Write a chat template in the place of those that are there."""
    (folder / "chat_template.json").unlink(missing_ok=True)  # of transformers before the fifth
    change_settings(folder, without="chat_template")
    write_text(folder / "chat_template.jinja", template)


def generation_as_trained(
    task: "LanguageModeling", tokenizer: Any, base: Path
) -> "GenerationConfig":
    """How `peftkit predict` has a run of `task` on `base` generate: its ends, its padding, what a
    decoder begins with, and the recipe's choices."""
    from transformers import AutoConfig, GenerationConfig

    from peftkit.evaluation.generation import ends_named_by, generation_config
    from peftkit.tasks.language_modeling.generation_settings import Generation

    config = AutoConfig.from_pretrained(base)
    own = GenerationConfig.from_model_config(config)
    if (base / "generation_config.json").is_file():
        own = GenerationConfig.from_pretrained(base)
    ends = sorted({*task.stop_ids(tokenizer), *ends_named_by(own, config)})
    how, first = task.generate or Generation(), task.first_id(tokenizer)
    return generation_config(own, how, ends, tokenizer.pad_token_id, first)
