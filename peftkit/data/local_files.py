"""Local data files of any format that has a reader."""

from typing import Literal

from peftkit.data.base import Data
from peftkit.errors import DataError
from peftkit.hub.resolve import find_dataset
from peftkit.hub.source import Source, local_path


class Files(Data):
    """A file, or a folder whose file names contain their split (train*, validation*, test*)."""

    kind: Literal["files"] = "files"
    path: str
    """File or folder; `peftkit list formats` shows the formats."""
    subset: str | None = None
    """Folder below `path` to read, if there are several."""

    def resolve(self) -> Source:
        """Return the files at `path`, with the sha256 of their content."""
        if local_path(self.path) is None:
            raise DataError(f"data.path {self.path!r}: no such file or folder - fix the path")
        return find_dataset(self.path)
