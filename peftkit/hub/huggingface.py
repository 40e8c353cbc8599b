"""The Hugging Face Hub and its cache; an unreachable Hub is detected within seconds."""

import json
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import NamedTuple

from peftkit.errors import DataError
from peftkit.hub.source import (
    MODEL_PATTERNS,
    VOCABULARY_PATTERNS,
    data_files,
    model_files,
)
from peftkit.readers.base import readers

_PROBE_SECONDS = 3.0
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_TRUE = {"1", "ON", "YES", "TRUE"}


class SourceNotFound(DataError):
    """No source has the model or dataset: another name, a network or a fallback may help."""


class Request(NamedTuple):
    """What to download from the Hub."""

    kind: str  # "model" or "dataset"
    name: str
    revision: str | None = None
    subset: str | None = None

    @property
    def patterns(self) -> list[str]:
        """Files to download: never a pickle, never code."""
        if self.kind == "model":
            return [*MODEL_PATTERNS, *VOCABULARY_PATTERNS]
        folder = f"*{self.subset}/*" if self.subset else "*"
        return ["README.md", *(f"{folder}{suffix}" for suffix in readers())]

    @property
    def ignored(self) -> list[str]:
        """Copies of the weights for other runtimes, in subfolders of a model."""
        return ["*/*"] if self.kind == "model" else []

    @property
    def wider(self) -> "Request | None":
        """The same without its subset, for repositories whose folders have other names."""
        return self._replace(subset=None) if self.subset else None

    def __str__(self) -> str:
        pinned = f" at revision {self.revision!r}" if self.revision else ""
        return f"{self.kind} {self.name!r}{pinned}"


def find_cached(request: Request) -> Path | None:
    """Return the folder in the Hub's cache with all of `request`, or None; uses no network."""
    try:
        folder = _snapshot(request, local_files_only=True)
    except FileNotFoundError:  # huggingface_hub's LocalEntryNotFoundError is one
        return None
    if _is_whole(request, folder):
        return folder
    return find_cached(request.wider) if request.wider else None


def fetch(request: Request) -> Path:
    """Download `request` and return its folder.

    Raises `SourceNotFound` if the Hub cannot be reached or has no such name, else `DataError`.
    """
    if not hub_reachable():
        away = f"the hub ({endpoint()}) cannot be reached, or HF_HUB_OFFLINE is set"
        raise SourceNotFound(
            f"{request} is neither a local path nor in the hub's cache, and {away}"
        )
    try:
        folder = _snapshot(request, local_files_only=False)
    except Exception as error:  # the client's errors have other base classes in other versions
        raise _explain(error, request) from error
    if request.kind == "model":
        require_safetensors(request.name, folder)
    elif not data_files(folder):
        if request.wider:
            return fetch(request.wider)
        raise DataError(
            f"{request}: its repository has no {', '.join(readers())} files - "
            "try data.revision=refs/convert/parquet, where the hub keeps converted copies"
        )
    return folder


@cache
def hub_reachable() -> bool:
    """Return whether the Hub answers within 3 seconds; checked once per process.

    If it does not, the process goes offline: each later call of the Hub's client would otherwise
    retry for 26 seconds (huggingface_hub 2.4).
    """
    if _is_set_offline() or not _is_online(endpoint()):
        go_offline()
        return False
    return True


def endpoint() -> str:
    """Return the URL of the Hub, or of the mirror in `HF_ENDPOINT`."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        return str(constants.ENDPOINT)
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def go_offline() -> None:
    """Make huggingface_hub and datasets use no network in this process."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:  # both read the environment only when they are imported
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_DATASETS_OFFLINE = True  # type: ignore[attr-defined]


def require_safetensors(name: str, folder: Path) -> None:
    """Raise `DataError` unless `folder` has complete weights as safetensors."""
    missing = [shard for shard in _shards(folder) if not (folder / shard).is_file()]
    if missing:
        lost = ", ".join(missing)
        raise DataError(f"model {name!r}: weights are missing ({lost}) - fetch it again")
    if _has_weights(folder):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    held = f"has pickled weights only ({', '.join(pickled)})" if pickled else "has no safetensors"
    raise DataError(
        f"model {name!r}: {held} - peftkit loads only safetensors, since unpickling runs code; "
        "convert it with save_pretrained, or name a revision that has model.safetensors"
    )


def _snapshot(request: Request, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(
                request.name,
                repo_type=request.kind,
                revision=request.revision,
                allow_patterns=request.patterns,
                ignore_patterns=request.ignored,
                local_files_only=local_files_only,
            )
        )
    except HFValidationError as error:
        what = "is neither a local path nor a name on the hub ('owner/name')"
        raise DataError(f"{request}: {what} - fix it") from error


def _is_whole(request: Request, folder: Path) -> bool:
    if request.kind == "dataset":
        return bool(data_files(folder))
    has_tokenizer = any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))
    shards_here = all((folder / shard).is_file() for shard in _shards(folder))
    return (
        (folder / "config.json").is_file()
        and _has_weights(folder)
        and has_tokenizer
        and shards_here
    )


def _has_weights(folder: Path) -> bool:
    return any(path.suffix == ".safetensors" for path in model_files(folder))


def _shards(folder: Path) -> list[str]:
    """Return the weight files listed in the folder's index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _explain(error: Exception, request: Request) -> DataError:
    """Return the Hub client's `error` with what to do."""
    from huggingface_hub import errors

    kind = "datasets/" if request.kind == "dataset" else ""
    page = f"{endpoint()}/{kind}{request.name}"
    if isinstance(error, DataError):
        return error
    if isinstance(error, errors.GatedRepoError):
        todo = f"accept its terms at {page}, then log in (hf auth login) or set HF_TOKEN"
        return DataError(f"{request} is gated - {todo}")
    if isinstance(error, errors.RevisionNotFoundError):
        return DataError(f"{request}: the hub has no such revision - see {page}/commits")
    if isinstance(error, errors.RepositoryNotFoundError):
        what = f"the hub ({endpoint()}) has none of that name, or hides it until you log in"
        return SourceNotFound(
            f"{request} is neither a local path nor in the hub's cache, and {what}"
        )
    why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return DataError(f"{request}: fetching it from {endpoint()} failed ({why}) - try again")


def _is_set_offline() -> bool:
    constants = sys.modules.get("huggingface_hub.constants")
    is_requested = os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
    return is_requested or bool(getattr(constants, "HF_HUB_OFFLINE", False))


def _is_online(address: str) -> bool:
    """Return whether `address` answers in time, through the proxy if one is set."""
    found: list[bool] = []
    # in a thread, because name resolution has no timeout
    thread = threading.Thread(target=lambda: found.append(_probe(address)), daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 0.5)
    return bool(found) and found[0]


def _probe(address: str) -> bool:
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in {403, 407}  # else a proxy answers for it
    except urllib.error.URLError as error:
        # it is online, and the hub's client may have its certificate
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
