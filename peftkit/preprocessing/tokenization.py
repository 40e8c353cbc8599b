"""Tokenization of the splits, cached by content."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peftkit.config.recipe import Recipe
from peftkit.data.splits import Splits
from peftkit.errors import DataError, Fault
from peftkit.hub.source import Source, cache_folder
from peftkit.preprocessing.label_checks import similar_label_notes
from peftkit.preprocessing.tokenizers import check_token_ids
from peftkit.tasks.base import IGNORE_INDEX
from peftkit.text.special_tokens import encode_text, note_special_tokens

VERSION = 4
"""Part of the cache's key: count it up when the encoding changes."""
MANY_UNKNOWN = 0.001
"""From this share of unknown tokens in train on, a reader of the scores is told."""
SEARCHED_ROWS = 1000
LONGEST_WORD = 40
"""Characters of a word that are shown: some scripts write none apart."""


def encode(
    recipe: Recipe, splits: Splits, tokenizer: Any, model: Source, names: Sequence[str]
) -> dict[str, Any]:
    """Each split as a data set of token ids, labels and lengths, read from disk.

    Raises `DataError` when the length limit cuts every text of the train split.
    """
    key = content_key(recipe, splits, model, names)[:32]
    examples = {
        split: encode_split(recipe, getattr(splits, split), tokenizer, names, f"{key}-{split}")
        for split in ("train", "validation", "test")
    }
    check_token_ids(examples, tokenizer)
    check_truncation(recipe, examples["train"])
    if recipe.task.reading != "example":
        examples["train"] = with_labels(examples["train"], recipe.data.max_length)
    return examples


def content_key(recipe: Recipe, splits: Splits, model: Source, names: Sequence[str]) -> str:
    """A hash of everything that decides what the splits' rows are encoded to."""
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
    if recipe.task.fitted_state:  # the cache of tasks that fit nothing stays
        parts["fitted_state"] = dict(recipe.task.fitted_state)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
    folder = cache_folder() / "tokenized"
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


def with_labels(train: Any, limit: int) -> Any:
    """The examples of the train split of which something is left to learn within the length limit.

    Raises `DataError` where there are none.
    """
    kept = [i for i, labels in enumerate(train["labels"]) if any(x != IGNORE_INDEX for x in labels)]
    if len(train) and not kept:
        what = (
            f"{limit} tokens cut away all that is to be said in every one of {len(train)} examples "
            "of the train split - raise it"
        )
        raise DataError("there is nothing to learn:", [Fault("data.max_length", what)])
    return train.select(kept) if len(kept) < len(train) else train


def checked(recipe: Recipe, splits: Splits, tokenizer: Any) -> Splits:
    """The splits with the task's notes on how their rows suit the tokenizer.

    Raises `DataError` where they do not.
    """
    return replace(splits, notes=(*splits.notes, *recipe.task.check_rows(splits, tokenizer)))


def noted(
    recipe: Recipe,
    splits: Splits,
    examples: dict[str, Any],
    tokenizer: Any,
    names: Sequence[str],
) -> Splits:
    """The splits with notes on labels that look alike, the task's on its examples, and on what the
    length limit cut off of texts that are to be said, and what the tokenizer has no tokens for."""
    limit, notes = recipe.data.max_length, list(similar_label_notes(names))
    notes += recipe.task.encoding_notes(splits, examples)
    for split, found in examples.items() if recipe.task.reading == "labels" else ():
        cut = sum(found["truncated"])
        if cut:
            notes.append(f"{split}: {cut} of {len(found)} examples are cut at {limit} tokens")
        mute = sum(all(x == IGNORE_INDEX for x in labels) for labels in found["labels"])
        if split == "train":
            of = found["of"] if "of" in found.column_names else range(len(found))
            mute = len(splits.train) - len(set(of))
        if mute:
            notes.append(f"{split}: of {mute} rows nothing that is to be said is left")
    texts = texts_in(recipe, splits.train)
    share = unknown_share(recipe, examples["train"], tokenizer.unk_token_id)
    if share >= MANY_UNKNOWN:
        word = unknown_word(texts, tokenizer)
        what = f"{share:.2%} of the tokens are unknown to the tokenizer"
        notes.append(f"train: {what}{f', such as {word!r}' if word else ''}")
    own = set(recipe.task.markers())
    notes += note_special_tokens(tokenizer, texts, len(splits.train), own)
    return replace(splits, notes=(*splits.notes, *notes))


def texts_in(recipe: Recipe, rows: Any) -> list[Sequence[Any]]:
    """The columns of the rows that hold what is read, and what is to be said where that is text."""
    task = recipe.task
    roles = task.roles if task.reading == "labels" else task.inputs
    return [rows[role][:] for role in roles if role in rows.column_names]


def unknown_share(recipe: Recipe, examples: Any, unknown: int | None) -> float:
    """Unknown tokens as a share of all that are read or to be said."""
    import pyarrow.compute

    if unknown is None or not len(examples):
        return 0.0
    held = examples.with_format("arrow")[:]
    columns = [held["input_ids"]]
    if recipe.task.reading == "labels":
        lengths = pyarrow.compute.list_value_length(held["labels"])
        if not lengths.equals(pyarrow.compute.list_value_length(held["input_ids"])):
            columns.append(held["labels"])  # a decoder's
    tokens = [pyarrow.compute.list_flatten(column) for column in columns]
    hits = [pyarrow.compute.sum(pyarrow.compute.equal(each, unknown)).as_py() for each in tokens]
    return float(sum(hits) / sum(map(len, tokens)))


def unknown_word(texts: Sequence[Sequence[Any]], tokenizer: Any) -> str | None:
    """A word of the first texts that the tokenizer has no tokens for, where it is one alone."""
    for column in texts:
        for cell in column[:SEARCHED_ROWS]:
            words = cell.split() if isinstance(cell, str) else map(str, cell or ())
            for word in words:
                ids = encode_text(tokenizer, [word], add_special_tokens=False)["input_ids"][0]
                if tokenizer.unk_token_id in ids:
                    return str(word[:LONGEST_WORD])
    return None


def check_truncation(recipe: Recipe, train: Any) -> None:
    """Refuse a length limit that leaves no text whole."""
    limit = recipe.data.max_length
    if len(train) and all(train["truncated"]) and recipe.data.truncation == "some":
        what = (
            f"{limit} tokens cut every one of {len(train)} texts of the train split - raise it, or "
            "say data.truncation=all if that is meant"
        )
        raise DataError("the texts do not fit:", [Fault("data.max_length", what)])
