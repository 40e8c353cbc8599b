"""Safetensors files, unmapped: headers checked before use, tensors read and written in blocks."""

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
"""What is read, computed and written at a time: mapped pages would count as memory."""
LARGEST_HEADER = 100_000_000
"""The format's own limit."""
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes an element, by the format's names of types."""
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""The types that can be computed with, and torch's names for them."""


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies in a file."""

    name: str
    path: Path
    dtype: str
    """The format's name of the type."""
    shape: tuple[int, ...]
    start: int
    """The place of its first byte in the file."""

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * SIZES[self.dtype]

    @property
    def said(self) -> str:
        """Type and shape, for messages."""
        return f"{self.dtype} {list(self.shape)}"


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors in the file at `path`, in the order of their bytes.

    Raises `RunError` for a file that is cut short or whose header contradicts itself.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise damaged(path, f"its header is cut short ({size} bytes in all)")
        content = file.read(length)
    try:
        said = json.loads(content, object_pairs_hook=without_doubles)
    except ValueError as error:
        raise damaged(path, f"its header cannot be read ({error})") from None
    if not isinstance(said, dict):
        raise damaged(path, "its header is no mapping")
    said.pop("__metadata__", None)
    found = [stored(path, name, entry, 8 + length) for name, entry in said.items()]
    found.sort(key=lambda tensor: (tensor.start, tensor.num_bytes))
    check_places(path, found, 8 + length, size)
    return {tensor.name: tensor for tensor in found}


def without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of a header, in which no name may come twice."""
    names = [name for name, _ in pairs]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{doubles[0]!r} comes twice")
    return dict(pairs)


def stored(path: Path, name: str, entry: Any, base: int) -> Stored:
    """One entry of a header, whose bytes are counted from `base`."""
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = [*shape, first, last]
    except (KeyError, TypeError, ValueError):
        raise damaged(path, f"its header does not say where {name!r} lies") from None
    if any(type(number) is not int or number < 0 for number in numbers) or dtype not in SIZES:
        raise damaged(path, f"its header says {dtype} {list(shape)} at {first} of {name!r}")
    tensor = Stored(name, path, dtype, shape, base + first)
    if last - first != tensor.num_bytes:
        raise damaged(
            path, f"{name!r} ({tensor.said}) takes {tensor.num_bytes} bytes, not {last - first}"
        )
    return tensor


def check_places(path: Path, found: Sequence[Stored], start: int, size: int) -> None:
    """Refuse tensors that overlap, leave holes or end elsewhere than the file does."""
    for tensor in found:
        if tensor.start != start:
            what = "overlaps the one before" if tensor.start < start else "leaves a hole before it"
            raise damaged(path, f"{tensor.name!r} {what}")
        start += tensor.num_bytes
    if start != size:
        raise damaged(path, f"it has {size} bytes, its header speaks of {start}")


def damaged(path: Path, what: str) -> RunError:
    """The error for a file that is not what it should be."""
    return RunError(f"{path}: is damaged: {what} - take it from a copy, or fetch it again")


def read_bytes(tensor: Stored, file: IO[bytes], first: int, into: memoryview) -> None:
    """Fill `into` with the tensor's bytes from the `first` on."""
    file.seek(tensor.start + first)
    done = 0
    while done < len(into):
        count = file.readinto(into[done:])  # type: ignore[attr-defined]
        if not count:
            raise damaged(tensor.path, f"it ends within {tensor.name!r}")
        done += count


def blocks_of_bytes(tensor: Stored) -> Iterator[memoryview]:
    """The tensor's bytes, a block at a time; a block is gone when the next one comes."""
    room = memoryview(bytearray(min(BLOCK_BYTES, tensor.num_bytes)))
    with open(tensor.path, "rb", buffering=0) as file:
        for first in range(0, tensor.num_bytes, BLOCK_BYTES):
            part = room[: min(BLOCK_BYTES, tensor.num_bytes - first)]
            read_bytes(tensor, file, first, part)
            yield part


def load(tensor: Stored) -> "Tensor":
    """The whole tensor, in fp32."""
    import torch

    content = bytearray(tensor.num_bytes)
    with open(tensor.path, "rb", buffering=0) as file:
        read_bytes(tensor, file, 0, memoryview(content))
    if not content:
        return torch.zeros(tensor.shape)
    flat = torch.frombuffer(content, dtype=getattr(torch, FLOATS[tensor.dtype]))
    return flat.reshape(tensor.shape).float()


def header_bytes(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The head of a file that holds `tensors` (name, type, shape) in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    first = 0
    for name, dtype, shape in tensors:
        last = first + prod(shape) * SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}
        first = last
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(folder: Path) -> dict[str, list[Stored]]:
    """The shards of the checkpoint in `folder`, by file name, each with its tensors.

    Raises `RunError` for shards that are absent, damaged, outside of `folder` or pickled.
    """
    if (folder / INDEX).is_file():
        return open_shards(folder, read_index(folder / INDEX))
    if (folder / SINGLE).is_file():
        return {SINGLE: list(read_header(folder / SINGLE).values())}
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in there if name.endswith(PICKLES)]
    if pickled:
        raise RunError(
            f"{folder}: holds its weights as pickles ({', '.join(pickled[:3])}), which can run "
            "code - convert them where you trust them, with save_pretrained, into safetensors"
        )
    raise RunError(
        f"{folder}: holds neither {SINGLE} nor {INDEX} (there are {', '.join(there) or 'no files'})"
        " - name the folder of a checkpoint with --base"
    )


def read_index(path: Path) -> Mapping[str, str]:
    """Which file each tensor is in, as the index at `path` says."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(place) for name, place in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"it holds no map of weights ({error})") from None
    for name, place in places.items():
        if place in ("", ".", "..") or os.path.basename(place) != place or "\\" in place:
            raise RunError(
                f"{path}: says that {name!r} is in {place!r}, which is outside of its folder - "
                "don't trust this checkpoint, fetch it again"
            )
        if not place.endswith(".safetensors"):
            raise RunError(
                f"{path}: says that {name!r} is in {place!r}, which is no safetensors file - "
                "convert the checkpoint with save_pretrained"
            )
    return places


def open_shards(folder: Path, places: Mapping[str, str]) -> dict[str, list[Stored]]:
    """The shards that an index names, held against it."""
    shards = sorted(set(places.values()))
    if absent := [name for name in shards if not (folder / name).is_file()]:
        raise RunError(
            f"{folder / INDEX}: names files that are not there ({', '.join(absent)}) - fetch the "
            "checkpoint again"
        )
    found = {name: list(read_header(folder / name).values()) for name in shards}
    inside = {(tensor.name, name) for name, tensors in found.items() for tensor in tensors}
    if wrong := sorted(set(places.items()) ^ inside):
        name, shard = wrong[0]
        what = "is not in it" if (name, shard) in places.items() else "is not in the index"
        raise damaged(
            folder / shard, f"of {len(wrong)} tensors index and file differ: {name} {what}"
        )
    return found
