"""Inputs: where a merge's base lies, whether it is the right one, and the texts to verify with."""

from collections.abc import Sequence
from pathlib import Path

from peftkit.errors import DataError, RunError
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source, local_path, model_files, sha256_of
from peftkit.hub.wheels import carried_by
from peftkit.merging.adapters import Adapter
from peftkit.records.artifact import check


def base_folder(adapter: Adapter, base: Path | str | None, subtract: bool) -> Path:
    """The folder of the base: the named one, or the one that the adapter names.

    Raises `RunError` where neither is there.
    """
    if base is not None:
        return found_folder(str(base))
    if subtract:
        raise RunError(
            "--subtract takes an adapter out of a merged checkpoint - name it with --base"
        )
    if adapter.run is not None:
        source = Source.model_validate(adapter.run.description()["model"])
        if Path(source.location).exists():
            return Path(source.location)
    name = adapter.sealed.get("base", {}).get("requested") or adapter.config.get(
        "base_model_name_or_path"
    )
    if not name:
        raise RunError(f"{adapter.folder}: does not name its base - name it with --base")
    revision = adapter.config.get("revision")
    pinned = f"{name}@{revision}" if revision and local_path(str(name)) is None else str(name)
    return found_folder(pinned)


def found_folder(name: str) -> Path:
    """The local folder of the model called `name`."""
    path = local_path(name)
    if path is not None and path.is_dir():
        return path  # without hashing gigabytes, as `find_model` does
    try:
        return Path(find_model(name).location)
    except DataError as error:
        raise RunError(f"the base cannot be had: {error} (or name a folder with --base)") from None


def check_base(adapter: Adapter, base: Path, subtract: bool) -> None:
    """Refuse a base that an artifact of ours was not trained on, or that was changed since."""
    if not adapter.sealed or subtract:
        return
    said = adapter.sealed["base"]
    identity = str(said["identity"])
    source = Source(
        requested=str(base), used=str(base), origin="path", location=str(base), identity=identity
    )
    check(adapter.folder, source)
    if identity.startswith("sha256:"):
        now = carried_by(base) or f"sha256:{sha256_of(*model_files(base))}"
        if now != identity:
            raise RunError(
                f"{base}: is not byte for byte the {said['used']} that the adapter belongs "
                f"to (sha256 {now[7:19]}, not {identity[7:19]}) - put the old one back, or name it "
                "with --base"
            )


def read_texts(verify: Path | str | Sequence[str] | None) -> list[str] | None:
    """The texts to verify with; None for the run's own rows.

    Raises `RunError` for a file that is absent or empty.
    """
    if verify is None or verify == "off":
        return None
    if isinstance(verify, (str, Path)):
        path = Path(verify)
        if not path.is_file():
            raise RunError(
                f"--verify: there is no file {path} - name one, with a text a line, or off"
            )
        verify = path.read_text(encoding="utf-8").splitlines()
    texts = [text for text in verify if text.strip()]
    if not texts:
        raise RunError("--verify: holds no texts - give one a line, or off")
    return texts
