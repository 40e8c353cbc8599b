"""Resolution of model and dataset names to local files."""

from pathlib import Path

from peftkit.errors import DataError, nearest
from peftkit.hub import huggingface, wheels
from peftkit.hub.huggingface import Request, SourceNotFound
from peftkit.hub.source import (
    Source,
    data_files,
    local_path,
    model_files,
    sha256_of,
)
from peftkit.hub.toy_models import TINY, tiny_model
from peftkit.hub.wheels import WHEELS, Wheel
from peftkit.readers.base import readers


def find_model(name: str) -> Source:
    """Return the model called `name` (`name@revision` pins a revision on the Hub).

    Raises `DataError` if no source has it, or only as pickled weights.
    """
    if name in TINY:
        return tiny_model(name)
    path = local_path(name)
    if path is not None:
        return _local_model(name, path)
    repository, _, revision = name.partition("@")
    return _find(name, Request("model", repository, revision or None))


def find_dataset(name: str, revision: str | None = None, subset: str | None = None) -> Source:
    """Return the dataset called `name`: a local file or folder, or a name on the Hub.

    Raises `SourceNotFound`, a `DataError`, if no source has it; a fallback may then be used.
    """
    path = local_path(name)
    if path is not None:
        return _local_dataset(name, path)
    return _find(name, Request("dataset", name, revision, subset))


def shipped_config(name: str) -> Path | None:
    """Return the `config.json` included in peftkit for a model, which planning uses without
    weights; None if there is none."""
    folder = name.partition("@")[0].replace("/", "--")
    path = Path(__file__).parent / "configs" / folder / "config.json"
    return path if "/" in name and path.is_file() else None


def _find(requested: str, request: Request) -> Source:
    """Try the Hub's cache, an unpacked wheel, the Hub and the pinned wheel, in this order.

    An unpacked wheel comes before the Hub, so that a run that began with it resumes with the same
    bytes.
    """
    wheel = wheels.find_wheel(request.kind, request.name, request.revision)
    if wheel is not None and "/" not in request.name:  # a name of ours, unknown to the hub
        return wheels.unpack_source(requested, request.name, wheel)
    folder = huggingface.find_cached(request)
    if folder is not None:
        return _hub_source(requested, request, folder, "cache")
    if wheel is not None and wheels.is_unpacked(wheel):
        return wheels.unpack_source(requested, request.name, wheel)
    try:
        return _hub_source(requested, request, huggingface.fetch(request), "hub")
    except DataError as error:
        if wheel is not None:
            return _wheel_after(error, requested, request, wheel)
        raise (
            _with_choices(error, request) if isinstance(error, SourceNotFound) else error
        ) from None


def _wheel_after(refusal: DataError, requested: str, request: Request, wheel: Wheel) -> Source:
    """Return the pinned wheel; if it is unavailable too, raise both errors in one."""
    try:
        return wheels.unpack_source(requested, request.name, wheel)
    except DataError as error:
        raise SourceNotFound(f"{refusal.message}; {error.message}") from None


def _with_choices(absent: SourceNotFound, request: Request) -> SourceNotFound:
    names = [name for name, wheel in WHEELS.items() if wheel.gives == request.kind]
    hint = f"in wheels on a package index, {nearest(request.name, names)}"
    return SourceNotFound(
        f"{absent.message} - give a local folder, fix the name or go online; {hint}"
    )


def _hub_source(requested: str, request: Request, folder: Path, origin: str) -> Source:
    return Source.model_validate(
        {
            "requested": requested,
            "used": request.name,
            "origin": origin,
            "location": str(folder),
            # the cache names a snapshot's folder by its commit
            "identity": f"revision:{folder.name}",
        }
    )


def _local_model(name: str, path: Path) -> Source:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(f"model {name!r}: {what} - give a folder with config.json and weights")
    if not (path / "config.json").is_file():
        raise DataError(f"model {name!r}: {_what_it_is(path)} - {_what_to_give(path)}")
    huggingface.require_safetensors(name, path)
    identity = f"sha256:{sha256_of(*model_files(path))}"
    return Source(
        requested=name, used=name, origin="path", location=str(path.resolve()), identity=identity
    )


def _what_it_is(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "is an adapter, without the model it was trained on"
    return "is a folder without config.json"


def _what_to_give(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "merge it first (peftkit merge), or name the model itself"
    inside = sorted(child.parent.name for child in path.glob("*/config.json"))
    if inside:
        return f"did you mean {str(path / inside[0])!r}?"
    return "give the folder that save_pretrained wrote"


def _local_dataset(name: str, path: Path) -> Source:
    if not path.exists():
        raise DataError(f"data {name!r}: no such file or folder - fix the path")
    files = data_files(path)
    if not files:
        raise DataError(
            f"data {name!r}: has no data files - give a file, or a folder of files, "
            f"ending in {', '.join(readers())}"
        )
    identity = f"sha256:{sha256_of(*files)}"
    return Source(
        requested=name, used=name, origin="path", location=str(path.resolve()), identity=identity
    )
