"""The directory of a run: claimed by one process, written by rank 0, finished atomically."""

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
from peftkit.storage.atomic_files import explain_disk_errors, write_json, write_text
from peftkit.storage.yaml import dump_yaml


class RunDir:
    """One run on disk: claimed by one process, written by rank 0, finished atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened = time.monotonic()
        """When this process opened the run."""
        self._lock = FileLock(path.parent / f".{path.name}.lock")

    @classmethod
    def of(
        cls, root: Path, recipe: Recipe, model: Source, data: Source, rerun: bool = False
    ) -> "RunDir":
        """The directory of the run; nothing is written yet."""
        digest = recipe.digest(model, data)
        return cls(root / name_of(root, recipe.name, digest, rerun, data.is_fallback))

    def claim(self, digest: str) -> None:
        """Lock the directory for this process.

        Raises `RunError` if another process is using it, if it belongs to another recipe or
        version, or if it cannot be written to.
        """
        with explain_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RunBusy(
                    f"{self.path}: another process is using this run - wait for it or stop it"
                ) from None
        try:
            self.check(digest)
        except BaseException:
            self.release()
            raise

    @property
    def taken(self) -> bool:
        """Whether a process is using the directory."""
        return self.path.parent.is_dir() and is_held(self._lock)

    def check(self, digest: str) -> None:
        """Raise `RunError` if another recipe or version made the directory."""
        if not (self.path / "run.json").is_file():
            return
        known = self.description()
        if known.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                f"{self.path}: was made by another version of peftkit (schema "
                f"{known.get('schema_version')}, this one is {SCHEMA_VERSION}) - move it away"
            )
        if known.get("digest") != digest:
            raise RunError(f"{self.path}: belongs to another recipe - move it away")

    def begin(self, recipe: Recipe, model: Source, data: Source) -> None:
        """Write the recipe and the sources, before training."""
        self.path.mkdir(exist_ok=True)
        settings = {"name": recipe.name, **recipe.settings()}
        write_text(self.path / "recipe.yaml", dump_yaml(settings))
        if not (self.path / "run.json").is_file():
            facts = {"schema_version": SCHEMA_VERSION, "digest": recipe.digest(model, data)}
            sources = {"model": model.model_dump(), "data": data.model_dump()}
            write_json(self.path / "run.json", {**facts, **sources})

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Open the directory of a finished run. Raises `RunError` if it is none."""
        folder = cls(Path(path))
        if not folder.finished:
            hint = "it has not finished" if folder.path.is_dir() else "there is no such directory"
            if (folder.path / "record.json").is_file():
                hint = f"it failed: {folder.record.reason}"
            raise RunError(f"{path}: is not a finished run ({hint}) - name one that is")
        return folder

    def release(self) -> None:
        """Unlock the directory."""
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run has finished; a failed one has not."""
        return (self.path / "record.json").is_file() and self.record.status == "finished"

    @property
    def record(self) -> RunRecord:
        """The record of the run."""
        return read_record(self.path / "record.json")

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        with warnings.catch_warnings():
            # it was written by peftkit: nobody is to rename anything in it
            warnings.simplefilter("ignore", EarlierNameWarning)
            return Recipe.load(str(self.path / "recipe.yaml"))

    @property
    def artifact(self) -> Path:
        """Directory of the artifact: what was trained."""
        earlier = self.path / "artefact"
        return earlier if earlier.is_dir() else self.path / "artifact"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    def description(self) -> dict[str, Any]:
        """`run.json`: digest, sources, labels and other facts."""
        facts: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        if facts.get("schema_version") == 1:
            facts = {**convert(facts), "schema_version": SCHEMA_VERSION}
        return facts

    def describe(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        write_json(self.path / "run.json", {**self.description(), **facts})

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(entry)) + "\n")

    def logged(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`, without a last one that was cut short."""
        path = self.path / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def forget_after(self, step: int) -> None:
        """Remove the log lines of later steps, which will be repeated."""
        kept = [entry for entry in self.logged() if entry.get("step", 0) <= step]
        write_text(self.path / "log.jsonl", "".join(json.dumps(e) + "\n" for e in kept))

    def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `predictions.jsonl`: row id, hash, label and probabilities, but not the text."""
        write_text(
            self.path / "predictions.jsonl", "".join(json.dumps(dict(r)) + "\n" for r in rows)
        )

    def finish(self, record: RunRecord) -> RunRecord:
        """Write the record, last of all and at once, and release the folder."""
        write_text(self.path / "record.json", record.model_dump_json(indent=1) + "\n")
        self.release()
        return record.located(self.path)


def is_held(lock: FileLock) -> bool:
    """Whether a running process holds `lock`."""
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
