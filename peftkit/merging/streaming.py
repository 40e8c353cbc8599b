"""Writes the planned shards block by block, in constant memory."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import IO, TYPE_CHECKING, Any

from peftkit.deltas.base import RowUpdate
from peftkit.errors import RunError
from peftkit.merging.outputs import MergePlan, Output
from peftkit.storage.safetensors_files import (
    BLOCK_BYTES,
    DTYPE_BYTES,
    INDEX_FILE,
    SINGLE_FILE,
    TORCH_DTYPES,
    StoredTensor,
    format_header,
    iterate_blocks,
    read_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

MAX_QUEUED_BLOCKS = 4
"""Blocks that are queued for computing, and for writing."""
MAX_WORKERS = 8
"""Threads that compute: more are limited by the disk and by memory."""


@dataclass
class Written:
    """What was written."""

    num_bytes: int = 0
    """The size of all tensors."""
    copied: int = 0
    """Tensors copied from the base, bit for bit."""
    changed: list[str] = field(default_factory=list)
    """Tensors that the adapter changed or added."""
    unchanged: list[str] = field(default_factory=list)
    """Tensors that it adapts and that are equal to the base's."""


def write_shards(
    plan: MergePlan, folder: Path, sign: float, advance: Callable[[int], None]
) -> Written:
    """Write the plan's shards and their index into `folder`; `advance` takes the bytes written.

    Raises `RunError` for a tensor with NaN or an infinity, and for one whose change is lost when
    rounded to its type.
    """
    written = Written()
    computes = any(output.is_computed for output in plan.outputs)
    with compute_pool() if computes else ThreadPoolExecutor(1) as pool:
        for shard, outputs in plan.shards.items():
            write_shard(folder / shard, outputs, sign, written, pool, advance)
    if list(plan.shards) != [SINGLE_FILE]:
        write_index(plan, folder, written.num_bytes)
    return written


def write_index(plan: MergePlan, folder: Path, num_bytes: int) -> None:
    """Write the index: the shard of each tensor."""
    from peftkit.storage.atomic_files import write_json

    places = {output.name: shard for shard, outputs in plan.shards.items() for output in outputs}
    total = {"total_size": num_bytes}
    write_json(folder / INDEX_FILE, {"metadata": total, "weight_map": dict(sorted(places.items()))})


def write_shard(
    path: Path,
    outputs: Sequence[Output],
    sign: float,
    written: Written,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> None:
    """Write one shard."""
    with open(path, "wb", buffering=0) as file:
        writer = Writer(file, advance)
        try:
            writer.put(format_header([(o.name, o.dtype, o.shape) for o in outputs]))
            for output in outputs:
                write_tensor(output, sign, written, writer, pool)
                written.num_bytes += output_size(output)
        finally:
            writer.close()


def output_size(output: Output) -> int:
    """The size of a tensor in the merged checkpoint, in bytes."""
    return output.source.num_bytes // DTYPE_BYTES[output.source.dtype] * DTYPE_BYTES[output.dtype]


def write_tensor(
    output: Output, sign: float, written: Written, writer: "Writer", pool: ThreadPoolExecutor
) -> None:
    """Write one tensor, and record whether it was copied or changed."""
    if not output.is_computed:
        same = True
        for block in iterate_blocks(output.source):
            writer.put(bytes(block))
        if not output.is_touched:
            written.copied += 1
            return
        same = output.base is not None and have_same_bytes(output.source, output.base)
    else:
        same = True
        for content, unchanged in compute_blocks(output, sign, pool):
            same = same and unchanged
            writer.put(content)
    # only for additions: a factor leaves zeros unchanged
    if same and any(delta.additive and not delta.is_zero() for delta in output.deltas):
        raise RunError(
            f"{output.name}: the adapter's change is lost when rounded to {output.dtype} - merge "
            "into a base that is stored in F32"
        )
    (written.unchanged if same else written.changed).append(output.name)


def have_same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same bytes."""
    if one.num_bytes != other.num_bytes:
        return False
    pairs = zip(iterate_blocks(one), iterate_blocks(other), strict=True)
    return all(first == second for first, second in pairs)


def compute_blocks(
    output: Output, sign: float, pool: ThreadPoolExecutor
) -> Iterator[tuple[Any, bool]]:
    """The tensor's new bytes, block by block, and whether each block is equal to the base's."""
    rows = [delta.prepare(output.shape, sign) for delta in output.deltas]
    differs = threading.Event()
    num_rows = output.shape[0] if output.shape else 1
    row_bytes = max(1, output.source.num_bytes // max(1, num_rows))
    if any(delta.needs_all_rows for delta in output.deltas):  # with all of torch's threads
        yield compute_block(output, rows, 0, num_rows, row_bytes, differs)
        return
    step = max(1, BLOCK_BYTES // row_bytes)
    waiting: deque[Future[tuple[Any, bool]]] = deque()
    for first in range(0, num_rows, step):
        end = min(num_rows, first + step)
        waiting.append(pool.submit(compute_block, output, rows, first, end, row_bytes, differs))
        if len(waiting) > MAX_QUEUED_BLOCKS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def compute_block(
    output: Output,
    rows: Sequence[RowUpdate],
    first: int,
    end: int,
    row_bytes: int,
    differs: threading.Event,
) -> tuple[Any, bool]:
    """The new bytes of some rows, and whether they are equal to the base's.

    `differs` is set once rows differ: the others need not be compared.
    """
    before = read_rows(output.source, first, end, row_bytes)
    after = apply_deltas(output, before, rows, first, end)
    same = not differs.is_set() and output.base is output.source and are_equal(before, after)
    if not same:
        differs.set()
    return as_bytes(after), same


def compute_pool() -> ThreadPoolExecutor:
    """Threads that compute a block each: on small blocks torch's own threads would mostly wait."""
    import torch

    count = min(MAX_WORKERS, torch.get_num_threads())
    return ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1))


def read_rows(tensor: StoredTensor, first: int, end: int, row_bytes: int) -> "Tensor":
    """Some rows of a tensor, in its own type."""
    import torch

    content = torch.empty((end - first) * row_bytes, dtype=torch.uint8)
    room: Any = content.numpy()
    with open(tensor.path, "rb", buffering=0) as file:
        read_bytes(tensor, file, first * row_bytes, memoryview(room))
    flat = content.view(getattr(torch, TORCH_DTYPES[tensor.dtype]))
    return flat.reshape(end - first, *tensor.shape[1:])


def apply_deltas(
    output: Output, before: "Tensor", rows: Sequence[RowUpdate], first: int, end: int
) -> Any:
    """The rows after all deltas, computed in fp32 and rounded once."""
    import torch

    after = before.to(torch.float32, copy=True)
    for delta in rows:
        after = delta(first, end, after)
    finite = bool(torch.isfinite(after.sum()))
    after = after.to(getattr(torch, TORCH_DTYPES[output.dtype]))
    # the sum can overflow though no element does, and rounding to fp16 overflows above 65504
    if (not finite or output.dtype == "F16") and not bool(torch.isfinite(after).all()):
        raise RunError(
            f"{output.name}: would contain NaN or an infinity in {output.dtype} - train again, "
            "or merge into a base that is stored in F32"
        )
    return after


def as_bytes(tensor: "Tensor") -> Any:
    """A tensor's bytes, without a copy."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def are_equal(before: "Tensor", after: "Tensor") -> bool:
    """Whether type and elements are equal."""
    import torch

    return before.dtype == after.dtype and torch.equal(before, after)


class Writer:
    """Writes blocks to a file, in order, in a thread of its own."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance
        self.waiting: Queue[Any] = Queue(MAX_QUEUED_BLOCKS)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def put(self, block: Any) -> None:
        """Queue a block, whose bytes must not change any more."""
        if self.error is not None:
            raise self.error
        self.waiting.put(block)

    def close(self) -> None:
        """Wait until everything is written; raises the error of the thread."""
        self.waiting.put(None)
        self.thread.join()
        if self.error is not None:
            raise self.error

    def _write(self) -> None:
        while (block := self.waiting.get()) is not None:
            if self.error is not None:
                continue  # so that `put` does not block
            try:
                left = memoryview(block)
                while len(left):
                    left = left[self.file.write(left) :]
                self.advance(len(block))
            except BaseException as error:  # raised by `put` and `close`
                self.error = error
