"""Data in files of one's own: csv, tsv, json, jsonl or parquet."""

from typing import Literal

from peftkit.data.base import Data
from peftkit.errors import DataError
from peftkit.hub.resolve import find_dataset
from peftkit.hub.source import Source, local_path


class Files(Data):
    """One file, or a folder whose file names say the split (train*, validation*, test*)."""

    kind: Literal["files"] = "files"
    path: str
    """File or folder (csv, tsv, json, jsonl, parquet; conll, conllu, iob, iob2, bio)."""
    subset: str | None = None
    """Folder below `path` to read, where there are several."""

    def resolve(self) -> Source:
        """The files at `path`, with the sha256 of their content."""
        if local_path(self.path) is None:
            raise DataError(f"data.path {self.path!r}: no such file or folder - mend the path")
        return find_dataset(self.path)
