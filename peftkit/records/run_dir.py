"""The folder of a run: claimed by one process, written by its first rank, finished by a rename."""

import json
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peftkit.config.recipe import Recipe
from peftkit.deprecation import EarlierNameWarning
from peftkit.errors import RunBusy, RunError
from peftkit.hub.source import Source
from peftkit.records.conversion import convert
from peftkit.records.record import SCHEMA_VERSION, RunRecord, read_record
from peftkit.storage.atomic_files import write_json, write_text, writing
from peftkit.storage.yaml import dump_yaml


class RunDir:
    """One run on disk: claimed by one process, written by rank 0, finished by one rename."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened = time.monotonic()
        """When this process took the run up."""
        self._lock = FileLock(path.parent / f".{path.name}.lock")

    @classmethod
    def of(
        cls, root: Path, recipe: Recipe, model: Source, data: Source, rerun: bool = False
    ) -> "RunDir":
        """The folder that the run belongs in; nothing is written yet."""
        digest = recipe.digest(model, data)
        return cls(root / name_of(root, recipe.name, digest, rerun, data.is_fallback))

    def claim(self, digest: str) -> None:
        """Lock the folder for this process.

        Raises `RunError` when another process is at work in it, when it is another recipe's or
        version's, or when nothing can be written there.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RunBusy(
                    f"{self.path}: another process is at work on this run - wait for it or stop it"
                ) from None
        try:
            self.check(digest)
        except BaseException:
            self.release()
            raise

    @property
    def taken(self) -> bool:
        """Whether some process is at work in the folder."""
        return self.path.parent.is_dir() and is_held(self._lock)

    def check(self, digest: str) -> None:
        """Refuse a folder that another recipe or version made."""
        if not (self.path / "run.json").is_file():
            return
        known = self.description()
        if known.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                f"{self.path}: was made by another version of peftkit (schema "
                f"{known.get('schema_version')}, this one is {SCHEMA_VERSION}) - move it away"
            )
        if known.get("digest") != digest:
            raise RunError(f"{self.path}: is the folder of another recipe - move it away")

    def begin(self, recipe: Recipe, model: Source, data: Source) -> None:
        """Write what is known of the run before it is trained."""
        self.path.mkdir(exist_ok=True)
        settings = {"name": recipe.name, **recipe.settings()}
        write_text(self.path / "recipe.yaml", dump_yaml(settings))
        if not (self.path / "run.json").is_file():
            facts = {"schema_version": SCHEMA_VERSION, "digest": recipe.digest(model, data)}
            sources = {"model": model.model_dump(), "data": data.model_dump()}
            write_json(self.path / "run.json", {**facts, **sources})

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """The folder of a finished run, to read."""
        folder = cls(Path(path))
        if not folder.finished:
            hint = "it has not finished" if folder.path.is_dir() else "there is no such folder"
            if (folder.path / "record.json").is_file():
                hint = f"it failed: {folder.record.reason}"
            raise RunError(f"{path}: is not a finished run ({hint}) - name one that is")
        return folder

    def release(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run is done; a failed one is tried again."""
        return (self.path / "record.json").is_file() and self.record.status == "finished"

    @property
    def record(self) -> RunRecord:
        """What happened."""
        return read_record(self.path / "record.json")

    @property
    def recipe(self) -> Recipe:
        """The recipe the run was made by."""
        with warnings.catch_warnings():
            # it was written by peftkit: nobody is to rename anything in it
            warnings.simplefilter("ignore", EarlierNameWarning)
            return Recipe.load(str(self.path / "recipe.yaml"))

    @property
    def artifact(self) -> Path:
        """Where what was trained lies."""
        earlier = self.path / "artefact"
        return earlier if earlier.is_dir() else self.path / "artifact"

    @property
    def checkpoints(self) -> Path:
        """Where the run's state is saved while it trains."""
        return self.path / "checkpoints"

    def description(self) -> dict[str, Any]:
        """What was written at the claim: digest, sources, labels."""
        said: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        if said.get("schema_version") == 1:
            said = {**convert(said), "schema_version": SCHEMA_VERSION}
        return said

    def describe(self, **facts: Any) -> None:
        """Add to what is known of the run while it goes on."""
        write_json(self.path / "run.json", {**self.description(), **facts})

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(entry)) + "\n")

    def logged(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`; a last one cut short by a kill is left out."""
        path = self.path / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def forget_after(self, step: int) -> None:
        """Drop log lines of steps that will be done again."""
        kept = [entry for entry in self.logged() if entry.get("step", 0) <= step]
        write_text(self.path / "log.jsonl", "".join(json.dumps(e) + "\n" for e in kept))

    def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `predictions.jsonl`: row id, hash, label, probabilities; never the text."""
        write_text(
            self.path / "predictions.jsonl", "".join(json.dumps(dict(r)) + "\n" for r in rows)
        )

    def finish(self, record: RunRecord) -> RunRecord:
        """Write the record, last of all and at once, and release the folder."""
        write_text(self.path / "record.json", record.model_dump_json(indent=1) + "\n")
        self.release()
        return record.located(self.path)


def is_held(lock: FileLock) -> bool:
    """Whether some process holds `lock`; one that died does not."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def name_of(root: Path, name: str, digest: str, rerun: bool, is_fallback: bool) -> str:
    """`name-digest`; `rerun`: with a counter, where that run is finished already."""
    stem = f"{name}-{'standin-' if is_fallback else ''}{digest[:8]}"
    candidate, count = stem, 1
    while rerun and RunDir(root / candidate).finished:
        count += 1
        candidate = f"{stem}-{count}"
    return candidate
