"""Finds and checks a merge's inputs: the base, and the texts to verify with."""

from collections.abc import Sequence
from pathlib import Path

from peftkit.errors import DataError, RunError
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source, local_path, model_files, sha256_of
from peftkit.hub.wheels import pinned_identity
from peftkit.merging.adapters import Adapter
from peftkit.records.artifact import check


def base_folder(adapter: Adapter, base: Path | str | None, subtract: bool) -> Path:
    """The folder of `base`, or of the base that the adapter names.

    Raises `RunError` if neither is available.
    """
    if base is not None:
        return model_folder(str(base))
    if subtract:
        raise RunError(
            "--subtract needs the merged checkpoint to subtract from - name it with --base"
        )
    if adapter.run is not None:
        source = Source.model_validate(adapter.run.description()["model"])
        if Path(source.location).exists():
            return Path(source.location)
    name = adapter.manifest.get("base", {}).get("requested") or adapter.config.get(
        "base_model_name_or_path"
    )
    if not name:
        raise RunError(f"{adapter.folder}: does not name its base - name it with --base")
    revision = adapter.config.get("revision")
    pinned = f"{name}@{revision}" if revision and local_path(str(name)) is None else str(name)
    return model_folder(pinned)


def model_folder(name: str) -> Path:
    """The local folder of the model `name`."""
    path = local_path(name)
    if path is not None and path.is_dir():
        return path  # without hashing gigabytes, as `find_model` does
    try:
        return Path(find_model(name).location)
    except DataError as error:
        raise RunError(f"the base was not found: {error} (or name a folder with --base)") from None


def check_base(adapter: Adapter, base: Path, subtract: bool) -> None:
    """Raise `RunError` if an artifact of peftkit was trained on another base, or it has changed."""
    if not adapter.manifest or subtract:
        return
    recorded = adapter.manifest["base"]
    identity = str(recorded["identity"])
    source = Source(
        requested=str(base), used=str(base), origin="path", location=str(base), identity=identity
    )
    check(adapter.folder, source)
    if identity.startswith("sha256:"):
        actual = pinned_identity(base) or f"sha256:{sha256_of(*model_files(base))}"
        if actual != identity:
            raise RunError(
                f"{base}: has changed since the adapter was trained on {recorded['used']} "
                f"(sha256 {actual[7:19]}, not {identity[7:19]}) - restore it, or name the old one "
                "with --base"
            )


def read_texts(verify: Path | str | Sequence[str] | None) -> list[str] | None:
    """The texts to verify with; None for the run's own rows.

    Raises `RunError` for a file that is missing or empty.
    """
    if verify is None or verify == "off":
        return None
    if isinstance(verify, (str, Path)):
        path = Path(verify)
        if not path.is_file():
            raise RunError(f"--verify: no file {path} - name one with a text per line, or use off")
        verify = path.read_text(encoding="utf-8").splitlines()
    texts = [text for text in verify if text.strip()]
    if not texts:
        raise RunError("--verify: has no texts - give one per line, or use off")
    return texts
