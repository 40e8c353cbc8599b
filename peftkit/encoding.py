"""Encoding: splits to token ids, done once and cached by content."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

from peftkit.data import Splits
from peftkit.errors import DataError, Fault
from peftkit.recipe import Recipe
from peftkit.sources import Source, cache_folder

VERSION = 2
"""Part of the cache's key: count it up when the encoding changes."""


def encode(
    recipe: Recipe, splits: Splits, tokenizer: Any, model: Source, names: Sequence[str]
) -> dict[str, Any]:
    """Each split as a data set of token ids, labels and lengths, read from disk.

    Raises `DataError` when the length limit cuts every text of the train split.
    """
    parts = {
        "version": VERSION,
        "rows": splits.key,
        "tokenizer": model.identity,
        # which class reads a tokenizer's files has changed between versions
        "transformers": importlib.metadata.version("transformers"),
        "task": recipe.task.model_dump(mode="json"),
        "names": list(names),
        "max_length": recipe.data.max_length,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    examples = {
        split: encode_split(recipe, getattr(splits, split), tokenizer, names, f"{key}-{split}")
        for split in ("train", "validation", "test")
    }
    check_truncation(recipe, examples["train"])
    return examples


def encode_split(recipe: Recipe, rows: Any, tokenizer: Any, names: Sequence[str], key: str) -> Any:
    """One split encoded, from the cache if the same rows were encoded the same way before."""

    def work(batch: dict[str, Any], indices: list[int]) -> dict[str, Any]:
        encoded = recipe.task.encode(batch, tokenizer, names, recipe.data.max_length)
        if "of" in encoded:
            encoded["of"] = [indices[place] for place in encoded["of"]]
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    if not len(rows):  # there is nothing to learn the columns from
        from datasets import Dataset

        columns = ("input_ids", "labels", "truncated", "length")
        return Dataset.from_dict({column: [] for column in columns})
    folder = cache_folder() / "tokenised"
    folder.mkdir(parents=True, exist_ok=True)
    return rows.map(
        work,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        cache_file_name=str(folder / f"{key}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=key.replace("-", "")[:64],
    )


def check_truncation(recipe: Recipe, train: Any) -> None:
    """Refuse a length limit that leaves no text whole."""
    limit = recipe.data.max_length
    if len(train) and all(train["truncated"]) and recipe.data.truncation == "some":
        what = (
            f"{limit} tokens cut every one of {len(train)} texts of the train split - raise it, or "
            "say data.truncation=all if that is meant"
        )
        raise DataError("the texts do not fit:", [Fault("data.max_length", what)])
