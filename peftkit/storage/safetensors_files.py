"""Reads and writes safetensors files in blocks; headers are checked before use."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from peftkit.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 1 << 20
"""How much is read, computed and written at a time: memory-mapped pages would count as memory."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes per element, by safetensors' names of data types."""
TORCH_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""The floating-point types, with torch's names for them."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not read yet."""

    name: str
    path: Path
    dtype: str
    """Safetensors' name of the data type."""
    shape: tuple[int, ...]
    start: int
    """The offset of its first byte in the file."""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def type_and_shape(self) -> str:
        """Data type and shape, for messages."""
        return f"{self.dtype} {list(self.shape)}"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors in the file at `path`, in the order of their bytes.

    Raises `RunError` for a file that is truncated or has an inconsistent header.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise damaged_error(path, f"its header is truncated (the file has {size} bytes)")
        content = file.read(length)
    try:
        header = json.loads(content, object_pairs_hook=unique_pairs)
    except ValueError as error:
        raise damaged_error(path, f"its header cannot be read ({error})") from None
    if not isinstance(header, dict):
        raise damaged_error(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    found = [parse_entry(path, name, entry, 8 + length) for name, entry in header.items()]
    found.sort(key=lambda tensor: (tensor.start, tensor.num_bytes))
    check_offsets(path, found, 8 + length, size)
    return {tensor.name: tensor for tensor in found}


def unique_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of a header as a dict; raises `ValueError` for a repeated name."""
    names = [name for name, _ in pairs]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{doubles[0]!r} is repeated")
    return dict(pairs)


def parse_entry(path: Path, name: str, entry: Any, base: int) -> StoredTensor:
    """One entry of a header, whose offsets are relative to `base`."""
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = [*shape, first, last]
    except (KeyError, TypeError, ValueError):
        raise damaged_error(path, f"its header has no offsets for {name!r}") from None
    if any(type(number) is not int or number < 0 for number in numbers) or dtype not in DTYPE_BYTES:
        raise damaged_error(
            path, f"its header has an invalid entry for {name!r}: {dtype} {list(shape)} at {first}"
        )
    tensor = StoredTensor(name, path, dtype, shape, base + first)
    if last - first != tensor.num_bytes:
        raise damaged_error(
            path,
            f"{name!r} ({tensor.type_and_shape}) has {last - first} bytes, not {tensor.num_bytes}",
        )
    return tensor


def check_offsets(path: Path, found: Sequence[StoredTensor], start: int, size: int) -> None:
    """Raise `RunError` for tensors that overlap, leave gaps or do not end where the file ends."""
    for tensor in found:
        if tensor.start != start:
            what = (
                "overlaps the tensor before it" if tensor.start < start else "has a gap before it"
            )
            raise damaged_error(path, f"{tensor.name!r} {what}")
        start += tensor.num_bytes
    if start != size:
        raise damaged_error(path, f"it has {size} bytes, but its header describes {start}")


def damaged_error(path: Path, what: str) -> RunError:
    """The error for a damaged file."""
    return RunError(f"{path}: is damaged: {what} - restore it from a copy, or download it again")


def read_bytes(tensor: StoredTensor, file: IO[bytes], first: int, into: memoryview) -> None:
    """Fill `into` with the tensor's bytes, starting at `first`."""
    file.seek(tensor.start + first)
    done = 0
    while done < len(into):
        count = file.readinto(into[done:])  # type: ignore[attr-defined]
        if not count:
            raise damaged_error(tensor.path, f"it ends inside {tensor.name!r}")
        done += count


def iterate_blocks(tensor: StoredTensor) -> Iterator[memoryview]:
    """The tensor's bytes in blocks; the next block overwrites the last one."""
    room = memoryview(bytearray(min(BLOCK_BYTES, tensor.num_bytes)))
    with open(tensor.path, "rb", buffering=0) as file:
        for first in range(0, tensor.num_bytes, BLOCK_BYTES):
            part = room[: min(BLOCK_BYTES, tensor.num_bytes - first)]
            read_bytes(tensor, file, first, part)
            yield part


def load_tensor(tensor: StoredTensor) -> "Tensor":
    """The whole tensor in fp32."""
    import torch

    content = bytearray(tensor.num_bytes)
    with open(tensor.path, "rb", buffering=0) as file:
        read_bytes(tensor, file, 0, memoryview(content))
    if not content:
        return torch.zeros(tensor.shape)
    flat = torch.frombuffer(content, dtype=getattr(torch, TORCH_DTYPES[tensor.dtype]))
    return flat.reshape(tensor.shape).float()


def format_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The header of a file with these `tensors` (name, data type, shape) in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    first = 0
    for name, dtype, shape in tensors:
        last = first + prod(shape) * DTYPE_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}
        first = last
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(folder: Path) -> dict[str, list[StoredTensor]]:
    """The shards of the checkpoint in `folder`, by file name, each with its tensors.

    Raises `RunError` for shards that are missing, damaged, pickled or outside of `folder`.
    """
    if (folder / INDEX_FILE).is_file():
        return open_shards(folder, read_index(folder / INDEX_FILE))
    if (folder / SINGLE_FILE).is_file():
        return {SINGLE_FILE: list(read_header(folder / SINGLE_FILE).values())}
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in there if name.endswith(PICKLE_SUFFIXES)]
    if pickled:
        raise RunError(
            f"{folder}: has pickled weights ({', '.join(pickled[:3])}), which can run code when "
            "loaded - if you trust them, convert them to safetensors with save_pretrained"
        )
    raise RunError(
        f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE} "
        f"(found {', '.join(there) or 'no files'}) - name the folder of a checkpoint with --base"
    )


def read_index(path: Path) -> Mapping[str, str]:
    """The file of each tensor, from the index at `path`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(place) for name, place in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_error(path, f"it has no valid weight_map ({error})") from None
    for name, place in places.items():
        if place in ("", ".", "..") or os.path.basename(place) != place or "\\" in place:
            raise RunError(
                f"{path}: {name!r} is in {place!r}, which is outside of its folder - do not "
                "trust this checkpoint, download it again"
            )
        if not place.endswith(".safetensors"):
            raise RunError(
                f"{path}: {name!r} is in {place!r}, which is not a safetensors file - convert "
                "the checkpoint with save_pretrained"
            )
    return places


def open_shards(folder: Path, places: Mapping[str, str]) -> dict[str, list[StoredTensor]]:
    """The shards that an index names.

    Raises `RunError` where their tensors are not those of the index.
    """
    shards = sorted(set(places.values()))
    if absent := [name for name in shards if not (folder / name).is_file()]:
        raise RunError(
            f"{folder / INDEX_FILE}: names files that are missing ({', '.join(absent)}) - download "
            "the checkpoint again"
        )
    found = {name: list(read_header(folder / name).values()) for name in shards}
    inside = {(tensor.name, name) for name, tensors in found.items() for tensor in tensors}
    if wrong := sorted(set(places.items()) ^ inside):
        name, shard = wrong[0]
        what = "is not in it" if (name, shard) in places.items() else "is not in the index"
        raise damaged_error(
            folder / shard, f"index and file differ in {len(wrong)} tensors: {name} {what}"
        )
    return found
