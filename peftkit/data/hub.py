"""Datasets on the Hugging Face Hub, or local copies of them."""

from typing import Literal

from pydantic import field_validator

from peftkit.data.base import ADDED_SETTINGS, Data
from peftkit.data.wheel import Wheel, check_pinned_dataset
from peftkit.errors import DataError
from peftkit.hub.huggingface import SourceNotFound
from peftkit.hub.resolve import find_dataset
from peftkit.hub.source import Source


class Hub(Data):
    """A dataset on the Hub: from its cache, the Hub, a local folder, or its fallback."""

    kind: Literal["hub"] = "hub"
    path: str
    """Name on the Hub ('owner/name'), or a local file or folder."""
    subset: str | None = None
    """Name of a subset (configuration)."""
    revision: str | None = None
    """Commit, tag or branch."""
    fallback: str | None = None
    """Data set to use, and say so, where this one cannot be had; 'forbid': an error instead."""

    @field_validator("fallback")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        return name if name in {None, "forbid"} else check_pinned_dataset(str(name))

    def resolve(self) -> Source:
        """Return the dataset, or its fallback if no source has it."""
        try:
            return find_dataset(self.path, self.revision, self.subset)
        except SourceNotFound as absent:
            if self.fallback in {None, "forbid"}:
                raise
            return self._fallback_source(str(self.fallback), absent)

    def settings_for(self, source: Source) -> Data:
        """Return the fallback's own columns and labels, with this dataset's sampling settings."""
        if not source.is_fallback:
            return self
        sampling = {"max_length", "validation", "test", "limit", "seed", "overlap", *ADDED_SETTINGS}
        shared = self.model_dump(include=sampling - {"splits"})  # those of other files
        return Wheel.model_validate({**shared, "name": source.used})

    def _fallback_source(self, name: str, absent: SourceNotFound) -> Source:
        try:
            found = find_dataset(name)
        except DataError as error:
            raise SourceNotFound(f"{absent.message}; its stand-in: {error.message}") from None
        note = f"{name} stands in for {self.path}, which cannot be had; {found.note}"
        return found.model_copy(update={"requested": self.path, "is_fallback": True, "note": note})
