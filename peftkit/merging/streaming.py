"""Streaming: the planned shards written a block at a time, while memory stays as it is."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import IO, TYPE_CHECKING, Any

from peftkit.errors import RunError
from peftkit.merging.checkpoint.tensors import (
    BLOCK_BYTES,
    FLOATS,
    INDEX,
    SINGLE,
    SIZES,
    Stored,
    blocks_of_bytes,
    header_bytes,
    read_bytes,
)
from peftkit.merging.deltas.low_rank import Rows
from peftkit.merging.outputs import Output, Plan

if TYPE_CHECKING:
    from torch import Tensor

WAITING_BLOCKS = 4
"""Blocks that wait to be computed, or to be written, at most."""
MOST_WORKERS = 8
"""Threads that compute, at most: the disk, and memory, serve no more."""


@dataclass(frozen=True)
class Press:
    """What writes shards: threads that compute, and who is told how much is done."""

    pool: ThreadPoolExecutor
    advance: Callable[[int], None]


@dataclass
class Written:
    """What was seen while the shards were written."""

    num_bytes: int = 0
    """Of tensors: the index's total."""
    copied: int = 0
    """Tensors that are the base's, bit for bit."""
    changed: list[str] = field(default_factory=list)
    """Tensors that the adapter has changed, or brought."""
    unchanged: list[str] = field(default_factory=list)
    """Tensors that it trained, or acts on by nothing, and that are as they were."""


def write_shards(plan: Plan, folder: Path, sign: float, advance: Callable[[int], None]) -> Written:
    """Write the plan's shards and their index into `folder`; `advance` is told the bytes done.

    Raises `RunError` for a tensor that holds NaN or an infinity, and for one that the adapter
    changes by less than its type can hold.
    """
    seen = Written()
    computes = any(output.computed for output in plan.outputs)
    with workers() if computes else ThreadPoolExecutor(1) as pool:
        for shard, outputs in plan.shards.items():
            write_shard(folder / shard, outputs, sign, seen, Press(pool, advance))
    if list(plan.shards) != [SINGLE]:
        write_index(plan, folder, seen.num_bytes)
    return seen


def write_index(plan: Plan, folder: Path, num_bytes: int) -> None:
    """Write which shard each tensor is in."""
    from peftkit.storage.atomic_files import write_json

    places = {output.name: shard for shard, outputs in plan.shards.items() for output in outputs}
    total = {"total_size": num_bytes}
    write_json(folder / INDEX, {"metadata": total, "weight_map": dict(sorted(places.items()))})


def write_shard(
    path: Path,
    outputs: Sequence[Output],
    sign: float,
    seen: Written,
    press: "Press",
) -> None:
    """Write one file of weights."""
    with open(path, "wb", buffering=0) as file:
        writer = Writer(file, press.advance)
        try:
            writer.put(header_bytes([(o.name, o.dtype, o.shape) for o in outputs]))
            for output in outputs:
                write_tensor(output, sign, seen, writer, press.pool)
                seen.num_bytes += output_bytes(output)
        finally:
            writer.close()


def output_bytes(output: Output) -> int:
    """The size of a tensor in the merged checkpoint."""
    return output.source.num_bytes // SIZES[output.source.dtype] * SIZES[output.dtype]


def write_tensor(
    output: Output, sign: float, seen: Written, writer: "Writer", pool: ThreadPoolExecutor
) -> None:
    """Write one tensor, and note what became of it."""
    if not output.computed:
        same = True
        for block in blocks_of_bytes(output.source):
            writer.put(bytes(block))
        if not output.touched:
            seen.copied += 1
            return
        same = output.base is not None and identical(output.source, output.base)
    else:
        same = True
        for content, unchanged in computed(output, sign, pool):
            same = same and unchanged
            writer.put(content)
    # what multiplies leaves zeros alone
    if same and any(fold.additive and not fold.is_nothing() for fold in output.folds):
        raise RunError(
            f"{output.name}: what the adapter changes is lost when rounded to {output.dtype}: the "
            "tensor would be the base's - merge into a base that is stored in F32"
        )
    (seen.unchanged if same else seen.changed).append(output.name)


def identical(one: Stored, other: Stored) -> bool:
    """Whether two tensors have the same bytes."""
    if one.num_bytes != other.num_bytes:
        return False
    pairs = zip(blocks_of_bytes(one), blocks_of_bytes(other), strict=True)
    return all(first == second for first, second in pairs)


def computed(output: Output, sign: float, pool: ThreadPoolExecutor) -> Iterator[tuple[Any, bool]]:
    """The tensor's new bytes, block by block, and whether a block's are those of the base."""
    rows = [fold.ready(output.shape, sign) for fold in output.folds]
    differs = threading.Event()
    num_rows = output.shape[0] if output.shape else 1
    a_row = max(1, output.source.num_bytes // max(1, num_rows))
    if any(fold.whole for fold in output.folds):  # alone, with all of torch's threads
        yield block(output, rows, 0, num_rows, a_row, differs)
        return
    step = max(1, BLOCK_BYTES // a_row)
    waiting: deque[Future[tuple[Any, bool]]] = deque()
    for first in range(0, num_rows, step):
        last = min(num_rows, first + step)
        waiting.append(pool.submit(block, output, rows, first, last, a_row, differs))
        if len(waiting) > WAITING_BLOCKS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def block(
    output: Output,
    rows: Sequence[Rows],
    first: int,
    last: int,
    a_row: int,
    differs: threading.Event,
) -> tuple[Any, bool]:
    """The new bytes of some rows, and whether they are those of the base.

    `differs` is set once rows of the tensor were found that are not: the others need no look.
    """
    before = read_rows(output.source, first, last, a_row)
    after = changed(output, before, rows, first, last)
    same = not differs.is_set() and output.base is output.source and equal(before, after)
    if not same:
        differs.set()
    return as_bytes(after), same


def workers() -> ThreadPoolExecutor:
    """Threads that compute a block each: torch's own, on blocks this small, would mostly wait."""
    import torch

    count = min(MOST_WORKERS, torch.get_num_threads())
    return ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1))


def read_rows(tensor: Stored, first: int, last: int, a_row: int) -> "Tensor":
    """Some rows of a tensor as they lie in its file."""
    import torch

    content = torch.empty((last - first) * a_row, dtype=torch.uint8)
    room: Any = content.numpy()
    with open(tensor.path, "rb", buffering=0) as file:
        read_bytes(tensor, file, first * a_row, memoryview(room))
    flat = content.view(getattr(torch, FLOATS[tensor.dtype]))
    return flat.reshape(last - first, *tensor.shape[1:])


def changed(output: Output, before: "Tensor", rows: Sequence[Rows], first: int, last: int) -> Any:
    """Rows after all folds, in fp32 until they are rounded, once."""
    import torch

    after = before.to(torch.float32, copy=True)
    for fold in rows:
        after = fold(first, last, after)
    finite = bool(torch.isfinite(after.sum()))
    after = after.to(getattr(torch, FLOATS[output.dtype]))
    # a sum can overflow where no number has, and rounding to fp16 overflows above 65504
    if (not finite or output.dtype == "F16") and not bool(torch.isfinite(after).all()):
        raise RunError(
            f"{output.name}: would hold NaN or an infinity in {output.dtype} - the adapter or the "
            "base is broken there; train again, or merge into a base that is stored in F32"
        )
    return after


def as_bytes(tensor: "Tensor") -> Any:
    """A tensor's bytes, without a copy."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def equal(before: "Tensor", after: "Tensor") -> bool:
    """Whether the numbers are the same."""
    import torch

    return before.dtype == after.dtype and torch.equal(before, after)


class Writer:
    """Writes blocks to a file in a thread of its own, in order, while others are computed."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance
        self.waiting: Queue[Any] = Queue(WAITING_BLOCKS)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def put(self, block: Any) -> None:
        """Hand over a block, whose bytes may not change any more."""
        if self.error is not None:
            raise self.error
        self.waiting.put(block)

    def close(self) -> None:
        """Wait until everything is written; raises what went wrong."""
        self.waiting.put(None)
        self.thread.join()
        if self.error is not None:
            raise self.error

    def _write(self) -> None:
        while (block := self.waiting.get()) is not None:
            if self.error is not None:
                continue  # so that nobody waits for room
            try:
                left = memoryview(block)
                while len(left):
                    left = left[self.file.write(left) :]
                self.advance(len(block))
            except BaseException as error:  # told in the other thread
                self.error = error
