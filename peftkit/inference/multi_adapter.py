"""A shared base: several runs' adapters on one base model in memory, each row its own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError, RunError, nearest
from peftkit.inference.predictor import Inputs, Row, columns_of, inputs_of, load_run, predicted
from peftkit.loading.model import LoadedModel
from peftkit.records.record import RunRecord, run_folder
from peftkit.records.run_dir import RunDir
from peftkit.training.integrity import fingerprint


@dataclass(frozen=True)
class Held:
    """One run that is held."""

    recipe: Recipe
    assembled: LoadedModel
    labels: list[str]
    inputs: Inputs


class SharedBase:
    """Finished runs on one base model, the weights that are the same in all of them held once.

    Each run keeps what it trained, its labels and its settings, and answers bit for bit as it does
    alone. While a run is added its own copy of the base is in memory for a moment.
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
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
        if folder.name in self._held:
            raise RunError(f"{folder}: a run of this name is loaded already - rename its directory")
        identity = RunDir(folder).description()["model"]["identity"]
        if self._base not in (None, identity):
            raise RunError(
                f"{folder}: was trained on another base than {', '.join(self._held)} - load it on "
                "a shared base of its own"
            )
        recipe, assembled, labels = load_run(folder)
        self._share(assembled.module)
        self._base = identity
        self._held[folder.name] = Held(recipe, assembled, labels, inputs_of(folder))

    @property
    def runs(self) -> list[str]:
        """The names of the runs that are held."""
        return list(self._held)

    def predict(self, texts: Iterable[Row], runs: str | Sequence[str]) -> list[dict[str, Any]]:
        """What is said of each text (or row), and its run; `runs` names one for all, or one a text.

        Rows of the same run go through the model together. Raises `RunError` for a name that is not
        held, `DataError` where there are not as many names as texts.
        """
        chosen = list(texts)
        named = [runs] * len(chosen) if isinstance(runs, str) else list(runs)
        if len(named) != len(chosen):
            raise DataError(f"{len(chosen)} texts and {len(named)} runs - name one run a text")
        for name in dict.fromkeys(named):
            if name not in self._held:
                raise RunError(f"no run {name!r} is held - {nearest(name, self._held)}")
        found: dict[int, dict[str, Any]] = {}
        for name in dict.fromkeys(named):
            rows = [index for index, other in enumerate(named) if other == name]
            answers = self._answers(self._held[name], [chosen[index] for index in rows])
            found.update(zip(rows, ({**said, "run": name} for said in answers), strict=True))
        return [found[index] for index in range(len(chosen))]

    def _answers(self, held: Held, texts: list[Row]) -> Iterable[dict[str, Any]]:
        columns = columns_of(texts, 1, held.inputs)
        return predicted(held.recipe, held.assembled, held.labels, columns)

    def _share(self, module: nn.Module) -> None:
        """Let frozen weights of the same content be the same memory."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                continue
            whole: Any = parameter
            kind = f"{parameter.dtype} {tuple(parameter.shape)}".encode()
            known = self._weights.setdefault(kind + fingerprint(parameter.data), parameter.data)
            if getattr(whole, "CB", None) is not None:  # an 8-bit weight keeps a second name for it
                whole.CB = known
            whole.data = known
