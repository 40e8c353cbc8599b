"""Assignment of the files in a folder to splits."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from peftkit.errors import DataError, Fault, nearest
from peftkit.hub.source import data_files

_WORDS = {
    "train": {"train", "training", "trainset", "traindata"},
    "validation": {"validation", "valid", "val", "valset", "dev", "devset", "development"},
    "test": {"test", "testing", "testset", "testdata", "eval", "evaluation"},
}


SplitName = Literal["train", "validation", "test"]
Held = TypeVar("Held")


class Layout(NamedTuple):
    """The files of each split, and notes on how they were chosen."""

    base: Path
    files: dict[str, list[Path]]
    notes: list[str]

    def name(self, path: Path) -> str:
        """Return the name of `path` in row names: its path below the folder."""
        return path.relative_to(self.base).as_posix()


def find_layout(location: Path, subset: str | None) -> Layout:
    """Return the splits in `location`, by the dataset card if it declares them, otherwise by file
    names.

    Raises `DataError` if a split or the subset cannot be determined.
    """
    if location.is_file():
        return Layout(location.parent, {"train": [location]}, [])
    card = _by_card(location, subset)
    if card is not None:
        return card
    files = data_files(location)
    chosen = _in_subset(location, files, subset)
    layout = _by_name(location, chosen)
    _require_one_format(layout)
    return layout


def rename_splits(
    splits: dict[str, Held], wanted: Mapping[SplitName, SplitName] | None
) -> dict[str, Held]:
    """Return the splits with their `wanted` names (ours to theirs); other splits are kept unless
    replaced or moved.

    Raises `DataError` if a split does not exist, or none is left to train on.
    """
    if not wanted:
        return splits
    gone = {*wanted, *wanted.values()}
    faults = [
        Fault(f"data.splits.{ours}", f"there is no {theirs!r} split - {nearest(theirs, splits)}")
        for ours, theirs in wanted.items()
        if theirs not in splits
    ]
    if not faults and "train" in gone - set(wanted):
        faults = [Fault("data.splits", "leaves nothing to train on - use a split as train")]
    if faults:
        raise DataError("the data has other splits:", faults)
    kept = {name: held for name, held in splits.items() if name not in gone}
    return kept | {str(ours): splits[theirs] for ours, theirs in wanted.items()}


def infer_split(path: Path, base: Path) -> str | None:
    """Return the split of `path`, by its name, or else by the names of its folders below `base`."""
    below = path.relative_to(base)
    for part in (below.stem, *reversed(below.parent.parts)):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, known in _WORDS.items():
            if words & known:
                return split
    return None


def _by_name(base: Path, files: list[Path]) -> Layout:
    splits: dict[str, list[Path]] = {}
    unnamed = []
    for path in files:
        split = infer_split(path, base)
        splits.setdefault(split, []).append(path) if split else unnamed.append(path)
    if not splits and len(unnamed) == 1:
        return Layout(base, {"train": unnamed}, [])
    listed = ", ".join(path.relative_to(base).as_posix() for path in (unnamed or files)[:5])
    if "train" not in splits:
        todo = "rename the file to train on to train.<suffix> (or train-*)"
        what = f"none of its files is a training split ({listed})"
        raise DataError(f"data {str(base)!r}: {what} - {todo}")
    notes = [f"ignored, since their names contain no split: {listed}"] if unnamed else []
    return Layout(base, splits, notes)


def _in_subset(base: Path, files: list[Path], subset: str | None) -> list[Path]:
    """Return the files below the folder of `subset`; without one, those of the only folder with
    data.

    A folder without subset folders is taken as one subset, such as a downloaded one.
    """
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(_group(path, base), []).append(path)
    if subset is None:
        for usual in ("", "data", "default"):
            if usual in groups:
                return groups[usual]
        if len(groups) == 1:
            return files
        raise DataError(
            f"data {str(base)!r} has several subsets - set data.subset: {_names(groups)}"
        )
    if subset in groups:
        return groups[subset]
    if set(groups) == {""}:
        return files
    raise DataError(f"data {str(base)!r} has no subset {subset!r} - {nearest(subset, groups)}")


def _group(path: Path, base: Path) -> str:
    """Return the subset of a file: its folders below `base`, without those that name a split."""
    parts = path.relative_to(base).parent.parts
    return "/".join(part for part in parts if infer_split(base / part, base) is None)


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _require_one_format(layout: Layout) -> None:
    for split, files in layout.files.items():
        suffixes = {path.suffix.lower() for path in files}
        if len(suffixes) > 1:
            what = f"its {split} split has files of {_names(suffixes)}"
            todo = "the same rows would count twice: keep one of them"
            raise DataError(f"data {str(layout.base)!r}: {what} - {todo}")


def _by_card(base: Path, subset: str | None) -> Layout | None:
    """Return the layout that `configs` in the folder's README.md declares, as on the Hub."""
    configs = _configs(base / "README.md")
    if not configs:
        return None
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    config = by_name.get(subset) if subset else _default_config(configs)
    if config is None and subset:
        raise DataError(f"data {str(base)!r} has no subset {subset!r} - {nearest(subset, by_name)}")
    if config is None:
        what = f"has several subsets - set data.subset: {_names(by_name)}"
        raise DataError(f"data {str(base)!r} {what}")
    return _from_config(base, config)


def _configs(card: Path) -> list[dict[str, Any]]:
    import yaml

    if not card.is_file():
        return []
    parts = re.split(r"^---\s*$", card.read_text(encoding="utf-8"), maxsplit=2, flags=re.MULTILINE)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except yaml.YAMLError:
        return []  # file names still identify the splits
    configs = front.get("configs") if isinstance(front, dict) else None
    return [c for c in configs or [] if isinstance(c, dict) and c.get("data_files")]


def _default_config(configs: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(configs) == 1:
        return configs[0]
    marked = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    return marked[0] if marked else None


def _from_config(base: Path, config: dict[str, Any]) -> Layout | None:
    """Return the layout of one config; None if its files have no reader."""
    declared = config["data_files"]
    if not isinstance(declared, list) or not all(isinstance(d, dict) for d in declared):
        declared = [{"split": "train", "path": declared}]
    files = {path.relative_to(base).as_posix(): path for path in data_files(base)}
    splits: dict[str, list[Path]] = {}
    left_out = []
    for entry in declared:
        patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        found = [p for name, p in files.items() if any(fnmatch(name, pat) for pat in patterns)]
        split = infer_split(base / f"{entry['split']}.x", base)
        if split is None or split in splits:
            left_out.append(str(entry["split"]))
        elif found:
            splits[split] = found
    notes = (
        [f"ignored, since they are not train, validation or test: {_names(left_out)}"]
        if left_out
        else []
    )
    return Layout(base, splits, notes) if "train" in splits else None
