"""Facts that all runs of a report must share, because they change scores or costs."""

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
"""Data settings that select rows or labels."""


def data_of(record: RunRecord) -> str:
    """The data by name and content."""
    fallback = f", a fallback for {record.data.requested}" if record.data.is_fallback else ""
    return f"{record.data.used}{fallback} ({record.data.identity})"


def split_of(record: RunRecord) -> str:
    """The number of rows of each split, and the settings that selected them."""
    data = record.recipe["data"]
    splits = ("train", "validation", "test")
    sizes = {split: record.rows.get(split) for split in splits}
    if data.get("folds") is not None:  # folds may differ by a row
        sizes = {}
    chosen = {key: data[key] for key in SPLITTING if data.get(key) is not None}
    return json.dumps({**sizes, **chosen}, sort_keys=True)


def hardware_of(record: RunRecord) -> str | None:
    """The hardware that costs depend on; None for failed runs."""
    world = record.world
    if world is None:
        return None
    return f"{world.device}, {world.ranks} ranks of {world.threads} threads, {world.sharding}"


def score_tokenizer_of(record: RunRecord) -> str | None:
    """The tokenizer of the text scores; None for records without such scores."""
    signatures = record.details.get("signatures")
    known = signatures.values() if isinstance(signatures, dict) else ()
    found = [part for each in known for part in str(each).split("|") if part.startswith("tok:")]
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
"""What all runs of a report must share, next to the versions of libraries."""


def facts_of(record: RunRecord) -> dict[str, str]:
    """The facts that a record has; unknown ones are left out."""
    known = {name: fact(record) for name, fact in FACTS.items()}
    versions = {f"version of {name}": value for name, value in record.versions.items()}
    return {name: value for name, value in {**known, **versions}.items() if value is not None}


def find_incompatibilities(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """The facts in which runs differ: fact -> value -> names of runs."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for fact, value in facts_of(run.record).items():
            found.setdefault(fact, {}).setdefault(value, []).append(run.where)
    return {fact: values for fact, values in found.items() if len(values) > 1}


def check_compatible(mixed: dict[str, dict[str, list[str]]]) -> None:
    """Raise `RunError` if there are incompatibilities."""
    if not mixed:
        return
    faults = [
        Fault(fact, "; ".join(f"{value} in {listed(runs, 2)}" for value, runs in values.items()))
        for fact, values in mixed.items()
    ]
    raise RunError(
        "these runs are not comparable - report them separately, or use --allow-mixed (the report "
        "will say so):",
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
    """All values of each fact."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for fact, value in facts_of(run.record).items():
            found.setdefault(fact, set()).add(value)
    return found


def strategy_key(run: Run) -> str:
    """The recipe without seed, fold and settings that leave the result unchanged, as JSON; all runs
    of one strategy share it."""
    recipe = dict(run.record.recipe)
    training = dict(recipe["training"])
    for name in ("seed", "save_steps", "threads", "track", "proof"):
        training.pop(name, None)
    # the identity of the data is compared, not its location
    left_out = ("path", "name", "fallback", "fold")
    data = {k: v for k, v in recipe["data"].items() if k not in left_out}
    kept = {**recipe, "training": training, "data": data}
    kept.pop("description", None)
    return json.dumps(kept, sort_keys=True)


def one_a_seed(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """One run of a strategy for each seed and fold, and notes on the runs that are left out.

    Finished runs come before failed ones, then the first by name.
    """
    kept, notes = [], []
    for (fold, seed), found in by_key(runs, lambda run: (run.fold, run.seed)):
        first, *others = sorted(found, key=lambda run: (not run.finished, run.where))
        kept.append(first)
        if others:
            names = listed([run.where for run in others])
            notes.append(
                f"{describe_replicate(fold, seed)} has {counted(len(found), 'run', 'runs')}: "
                f"{first.where} is used, {names} {'is' if len(others) == 1 else 'are'} not"
            )
    return sorted(kept, key=lambda run: (run.replicate, run.seed)), notes


def describe_replicate(fold: int | None, seed: int) -> str:
    """'seed 0', or 'fold 1, seed 0'."""
    return f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"


def plain_recipe(key: str) -> dict[str, Any]:
    """The settings in a `strategy_key`."""
    return dict(json.loads(key))
