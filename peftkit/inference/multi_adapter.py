"""Several runs on one base model in memory: each row is predicted by the run that it names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RunError, nearest
from peftkit.inference.predictor import (
    Inputs,
    Row,
    columns_of,
    inputs_of,
    load_run,
    predict_columns,
)
from peftkit.loading.model import LoadedModel
from peftkit.records.record import RunRecord, run_folder
from peftkit.records.run_dir import RunDir
from peftkit.training.integrity import fingerprint


@dataclass(frozen=True)
class LoadedRun:
    """A run in memory."""

    recipe: Recipe
    loaded: LoadedModel
    labels: list[str]
    inputs: Inputs


class SharedBase:
    """Finished runs on one base model, whose weights are in memory only once.

    The predictions are bit-identical to those of each run alone. While a run is added, a second
    copy of the base model is in memory.
    """

    def __init__(self) -> None:
        self._runs: dict[str, LoadedRun] = {}
        self._weights: dict[bytes, torch.Tensor] = {}
        self._base: str | None = None

    @classmethod
    def load(cls, runs: Iterable[RunRecord | Path | str]) -> Self:
        """The finished `runs` (records or their directories) on their base model.

        Raises `RunError` where one is not finished, or was trained on another base.
        """
        made = cls()
        for run in runs:
            made.add(run)
        return made

    def add(self, run: RunRecord | Path | str) -> None:
        """Load one more run; its name is its directory's."""
        folder = RunDir.open(run_folder(run)).path
        if folder.name in self._runs:
            raise RunError(f"{folder}: a run of this name is loaded already - rename its directory")
        identity = RunDir(folder).description()["model"]["identity"]
        if self._base not in (None, identity):
            raise RunError(
                f"{folder}: was trained on another base than {', '.join(self._runs)} - load it on "
                "a shared base of its own"
            )
        recipe, loaded, labels = load_run(folder)
        self._share(loaded.module)
        self._base = identity
        self._runs[folder.name] = LoadedRun(recipe, loaded, labels, inputs_of(folder))

    @property
    def runs(self) -> list[str]:
        """The names of the loaded runs."""
        return list(self._runs)

    def predict(self, texts: Iterable[Row], runs: str | Sequence[str]) -> list[dict[str, Any]]:
        """The predictions for `texts` (or rows), each with its 'run'; `runs` is the name of one run
        for all texts, or one name per text.

        Raises `RunError` for the name of a run that is not loaded, and `DataError` if there are not
        as many names as texts.
        """
        rows = list(texts)
        named = [runs] * len(rows) if isinstance(runs, str) else list(runs)
        if len(named) != len(rows):
            raise DataError(f"{len(rows)} texts and {len(named)} runs - name one run per text")
        for name in dict.fromkeys(named):
            if name not in self._runs:
                raise RunError(f"no run {name!r} is loaded - {nearest(name, self._runs)}")
        found: dict[int, dict[str, Any]] = {}
        for name in dict.fromkeys(named):
            places = [index for index, other in enumerate(named) if other == name]
            run = self._runs[name]
            columns = columns_of([rows[index] for index in places], 1, run.inputs)
            predictions = predict_columns(run.recipe, run.loaded, run.labels, columns)
            found.update(zip(places, ({**p, "run": name} for p in predictions), strict=True))
        return [found[index] for index in range(len(rows))]

    def _share(self, module: nn.Module) -> None:
        """Make frozen parameters of the same content share their memory."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                continue
            whole: Any = parameter
            kind = f"{parameter.dtype} {tuple(parameter.shape)}".encode()
            known = self._weights.setdefault(kind + fingerprint(parameter.data), parameter.data)
            if getattr(whole, "CB", None) is not None:  # bitsandbytes refers to 8-bit weights twice
                whole.CB = known
            whole.data = known
