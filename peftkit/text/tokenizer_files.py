"""Loading of a model's tokenizer from its files."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, TokenizersBackend
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)

from peftkit.errors import DataError

FEWEST_WORDS = 3
"""Number of non-special tokens below which transformers 5.23 is assumed to have created an empty
tokenizer because the vocabulary file is missing."""


NO_VOCABULARY = ("tokenizer_config_file", "target_vocab_file", "tokenizer_file")
"""Optional files of tokenizer classes."""


def open_tokenizer(folder: Path, config: PretrainedConfig) -> Any:
    """Return the tokenizer in a model's folder.

    Raises `DataError` that names the missing files or packages.
    """
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text("utf-8")).get("tokenizer_class") if path.is_file() else None
    # for some architectures (qwen2) AutoTokenizer 5.23 loads their usual class whatever is named
    loader: Any = TokenizersBackend if named == "TokenizersBackend" else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(folder)
    except ImportError as error:
        what = f"its tokenizer needs a package that is not installed: {first_line(error)}"
        raise DataError(f"model {str(folder)!r}: {what}") from None
    except Exception as error:  # of many types, some raised by the Rust library
        missing = describe_missing_files(folder, config, named)
        what = missing or f"its tokenizer cannot be read ({first_line(error)})"
        raise DataError(f"model {str(folder)!r}: {what} - {FETCH}") from error
    words = set(tokenizer.get_vocab()) - {str(t) for t in tokenizer.added_tokens_decoder.values()}
    if len(words) < FEWEST_WORDS and (missing := describe_missing_files(folder, config, named)):
        raise DataError(f"model {str(folder)!r}: {missing} - {FETCH}")
    return tokenizer


FETCH = "copy the tokenizer's files from where the weights come from"


def describe_missing_files(folder: Path, config: PretrainedConfig, named: str | None) -> str | None:
    """Return which tokenizer files are missing from the folder, for a message, or None."""
    if (folder / "tokenizer.json").is_file():
        return None
    name = named or TOKENIZER_MAPPING_NAMES.get(config.model_type) or "TokenizersBackend"
    known: Any = tokenizer_class_from_name(name)
    files = getattr(known, "vocab_files_names", {}).items()
    own = [file for kind, file in files if kind not in NO_VOCABULARY and file != "tokenizer.json"]
    lacking = [file for file in own if not (folder / file).is_file()]
    if own and not lacking:
        return None
    instead = f", and so is {' and '.join(lacking)}" if lacking else ""
    return f"has no tokenizer ({name}): tokenizer.json is missing{instead}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
