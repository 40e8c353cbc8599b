"""Mixture: what may not stand in one table, because it would change the scores or the costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from peftkit.errors import Fault, RunError
from peftkit.records.record import RunRecord
from peftkit.reporting.analysis.records import Run, by_key, counted, listed

SPLITTING = (
    *("seed", "validation", "test", "limit", "columns", "overlap", "subset", "label"),
    *("folds", "group"),
)
"""Data settings that choose rows or labels."""


def data_of(record: RunRecord) -> str:
    """The data by name and content."""
    fallback = f", a fallback for {record.data.requested}" if record.data.is_fallback else ""
    return f"{record.data.used}{fallback} ({record.data.identity})"


def split_of(record: RunRecord) -> str:
    """How many rows each split has, and the settings that chose them."""
    data = record.recipe["data"]
    splits = ("train", "validation", "test")
    sizes = {split: record.rows.get(split) for split in splits}
    if data.get("folds") is not None:  # which may differ by a row
        sizes = {}
    chosen = {key: data[key] for key in SPLITTING if data.get(key) is not None}
    return json.dumps({**sizes, **chosen}, sort_keys=True)


def hardware_of(record: RunRecord) -> str | None:
    """What the costs depend on; a failed run does not say."""
    world = record.world
    if world is None:
        return None
    return f"{world.device}, {world.ranks} ranks of {world.threads} threads, {world.sharding}"


def score_tokenizer_of(record: RunRecord) -> str | None:
    """How texts were split for their scores; a record of no such scores does not say."""
    signatures = record.details.get("signatures")
    said = signatures.values() if isinstance(signatures, dict) else ()
    found = [part for each in said for part in str(each).split("|") if part.startswith("tok:")]
    return ", ".join(sorted({part.removeprefix("tok:") for part in found})) or None


FACTS: dict[str, Callable[[RunRecord], str | None]] = {
    "data": data_of,
    "split": split_of,
    "model": lambda record: f"{record.model.used} ({record.model.identity})",
    "task": lambda record: str(record.recipe["task"]["kind"]),
    "metric": lambda record: record.headline,
    "score tokenizer": score_tokenizer_of,
    "precision": lambda record: record.world.precision if record.world else None,
    "hardware": hardware_of,
}
"""What all runs of a table must agree on, beside the version of every library."""


def facts_of(record: RunRecord) -> dict[str, str]:
    """What a record says of what may not be mixed; what it does not say is left out."""
    said = {name: fact(record) for name, fact in FACTS.items()}
    versions = {f"version of {name}": value for name, value in record.versions.items()}
    return {name: value for name, value in {**said, **versions}.items() if value is not None}


def mixtures(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """The facts on which runs differ: fact -> value -> runs that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for fact, value in facts_of(run.record).items():
            found.setdefault(fact, {}).setdefault(value, []).append(run.where)
    return {fact: values for fact, values in found.items() if len(values) > 1}


def refuse(mixed: dict[str, dict[str, list[str]]]) -> None:
    """Raise `RunError` where runs differ in what may not be mixed."""
    if not mixed:
        return
    faults = [
        Fault(fact, "; ".join(f"{value} in {listed(runs, 2)}" for value, runs in values.items()))
        for fact, values in mixed.items()
    ]
    raise RunError(
        "these runs do not belong into one table - report them apart, or say --allow-mixed "
        "(the table will say so):",
        faults,
    )


def differing(runs: Sequence[Run], reference: Sequence[Run]) -> list[str]:
    """The facts in which some of `runs` differ from the reference's, or from one another."""
    known = {fact: set(values) for fact, values in values_of(reference).items()}
    return [
        fact
        for fact, values in values_of(runs).items()
        if fact in known and (len(values) > 1 or values != known[fact])
    ]


def values_of(runs: Sequence[Run]) -> dict[str, set[str]]:
    """All values that runs have for each fact."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for fact, value in facts_of(run.record).items():
            found.setdefault(fact, set()).add(value)
    return found


def strategy_key(run: Run) -> str:
    """What all seeds and folds of one strategy share: the recipe without what tells them apart or
    leaves the result alone."""
    recipe = dict(run.record.recipe)
    training = dict(recipe["training"])
    for name in ("seed", "save_steps", "threads", "track", "proof"):
        training.pop(name, None)
    # the place where data lie is no part of what they are: their identity is compared
    left_out = ("path", "name", "fallback", "fold")
    data = {k: v for k, v in recipe["data"].items() if k not in left_out}
    kept = {**recipe, "training": training, "data": data}
    kept.pop("description", None)
    return json.dumps(kept, sort_keys=True)


def one_a_seed(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """One run of a strategy for each seed and fold, and a word about each that is left out.

    A finished run stands for the failed ones of its seed; of several finished ones, which would say
    the same twice, the first by name.
    """
    kept, notes = [], []
    for (fold, seed), found in by_key(runs, lambda run: (run.fold, run.seed)):
        first, *others = sorted(found, key=lambda run: (not run.finished, run.where))
        kept.append(first)
        if others:
            names = listed([run.where for run in others])
            notes.append(
                f"{turn_of(fold, seed)} is there {counted(len(found), 'time', 'times')}: "
                f"{first.where} is counted, {names} {'is' if len(others) == 1 else 'are'} not"
            )
    return sorted(kept, key=lambda run: (run.turn, run.seed)), notes


def turn_of(fold: int | None, seed: int) -> str:
    """Which of a strategy's runs it is, in words."""
    return f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"


def plain_recipe(key: str) -> dict[str, Any]:
    """The settings in a strategy's key."""
    return dict(json.loads(key))
