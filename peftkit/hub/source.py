"""Sources: which model or dataset was used, its location, and a hash of its content."""

import hashlib
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from peftkit.readers.base import readers
from peftkit.registry import Settings

TOKENIZER_PATTERNS = (
    "tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "chat_template*", "spiece.model", "*.tiktoken", "sentencepiece*",
)  # fmt: skip
VOCABULARY_PATTERNS = (
    "spm*.model", "source.spm", "target.spm", "*_vocab.json", "bpe.codes", "dict.txt", "emoji.json",
    "word_*.json", "byte_maps.json", "normalizer.json", "prophetnet.tokenizer",
)  # fmt: skip
"""Vocabulary files of some older architectures, such as DeBERTa v3 and Marian."""
MODEL_PATTERNS = (
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", *TOKENIZER_PATTERNS,
)  # fmt: skip
"""Files of a model that training reads: none of them can contain a pickle."""

_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class Source(Settings):
    """Where a model or dataset came from, as stored in the record."""

    requested: str
    """The name in the recipe."""
    used: str
    """The name of what was used."""
    origin: Literal["path", "cache", "hub", "wheel", "synthetic"]
    """Which kind of source had it."""
    location: str
    """The local folder or file."""
    identity: str
    """`sha256:<hex>` of its content, or `revision:<commit>` of the hub's: never a path."""
    note: str | None = None
    """What a reader of the scores should know about it."""
    is_fallback: bool = False
    """Whether it is the fallback for the requested dataset or model."""


def cache_folder() -> Path:
    """Return the folder of peftkit's cache: `PEFTKIT_CACHE`, or `~/.cache/peftkit`."""
    named = os.environ.get("PEFTKIT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "peftkit"


def local_path(name: str) -> Path | None:
    """Return `name` as a path if it exists or is written like one; None for a name on the Hub."""
    path = Path(name).expanduser()
    written_as_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    # 'data/imbd' next to a folder 'data' is a misspelled path, not a name on the Hub
    inside_a_folder = path.parent != Path() and path.parent.is_dir()
    return path if written_as_path or inside_a_folder or path.exists() else None


def model_files(folder: Path) -> list[Path]:
    """Return the files directly in `folder` that make up a model: configuration, tokenizer,
    weights.

    Older vocabulary files count only without a tokenizer.json, which is read instead of them, so
    that adding them does not change the base's identity.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    older = () if "tokenizer.json" in names else VOCABULARY_PATTERNS
    known = (*MODEL_PATTERNS, *older)
    return [folder / n for n in names if any(fnmatch(n, pattern) for pattern in known)]


def data_files(path: Path) -> list[Path]:
    """Return the data files at or below `path`, sorted by name."""
    suffixes = readers()
    if path.is_file():
        return [path] if path.suffix.lower() in suffixes else []
    found = (p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return sorted(p for p in found if p.name not in _NOT_DATA and not _is_hidden(p, path))


def sha256_of(*paths: Path) -> str:
    """Return the sha256 of one file's content, or of several files' names and contents."""
    if len(paths) == 1:
        return _sha256_of_file(paths[0])
    folder = os.path.commonpath([path.parent for path in paths])
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    total = hashlib.sha256()
    for name in sorted(named):
        total.update(f"{_sha256_of_file(named[name])}  {name}\n".encode())
    return total.hexdigest()


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
