"""The processes of a run: ranks, threads, precision and what the launcher sets."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from peftkit.errors import Fault, PeftkitError, RecipeError, RunError
from peftkit.records.record import WorldRecord
from peftkit.runtime.matmul_speed import matmul_speeds
from peftkit.runtime.measurements import device_name

if TYPE_CHECKING:
    from peftkit.config.training import Training

Result = TypeVar("Result")
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "scikit-learn",
)
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's `mallopt`; the maximum of the first is 32 MiB."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and what each of them uses."""

    rank: int
    size: int
    threads: int
    precision: str
    """The dtype of weights and of matrix products: 'bf16' or 'fp32'."""
    device: str
    sharding: str
    """'none', 'ddp', 'fsdp' or 'deepspeed'."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    @classmethod
    def enter(cls, training: "Training") -> "World":
        """Join the other ranks, and set threads and precision of this one."""
        import torch
        from accelerate import PartialState

        configure_allocator()
        precision = resolve_precision(training.precision)
        check_launcher_precision(precision)
        # the Trainer would read it and use autocast
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        state = PartialState(**({} if torch.cuda.is_available() else {"cpu": True}))
        threads = threads_of_rank(training.threads)
        torch.set_num_threads(threads)
        world = cls(
            state.process_index,
            state.num_processes,
            threads,
            precision,
            device_name(),
            sharding(state.num_processes),
        )
        if warning := slow_precision_warning(training.precision):
            say(world, f"note: {warning}")
        return world


def launched_ranks() -> int:
    """The number of ranks by the launcher's environment, without importing torch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def configure_allocator() -> None:
    """Limit the memory that grows with the number of batch shapes, and reuse freed memory (Linux).

    oneDNN caches 1,024 compiled primitives with their scratch memory, several per length of a
    packed row; 64 are enough (benchmarks/LOG.md). glibc returns blocks above 128 KiB to the system
    immediately, and faults them in again at the next step.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # torch's own cache of oneDNN primitives is as large: 1.0 GiB for a tiny model, now 0.6 GiB
    os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in musl
            libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def threads_of_rank(wanted: "int | str") -> int:
    """The number of threads of this rank; auto: its share of the available cores."""
    if wanted != "auto":
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def resolve_precision(wanted: str) -> str:
    """'bf16' or 'fp32'; auto: bf16 if matrix products are faster in it."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    speeds = matmul_speeds()
    return "bf16" if speeds["bf16"] > speeds["fp32"] else "fp32"


def slow_precision_warning(wanted: str) -> str | None:
    """A warning if bf16 is requested on a CPU whose matrix products are slower in it; else None."""
    import torch

    if wanted != "bf16" or torch.cuda.is_available():
        return None
    speeds = matmul_speeds()
    if speeds["bf16"] >= speeds["fp32"]:
        return None
    own, other = (f"{speeds[kind] / 1e9:,.1f}" for kind in ("bf16", "fp32"))
    return (
        f"training.precision=bf16: this processor reaches {own} GFLOP/s in bf16, {other} in fp32 "
        f"({speeds['fp32'] / speeds['bf16']:,.1f} times as many) - use training.precision=fp32"
    )


def check_launcher_precision(precision: str) -> None:
    """Raise `RecipeError` if the launcher requests another precision than the recipe; 'no' is
    ignored."""
    requested = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if requested in ("bf16", "fp16", "fp8") and requested != precision:
        what = (
            f"the launcher requests {requested}, the recipe {precision} - set mixed_precision: 'no'"
            " in accelerate's file"
        ) + (f" or training.precision={requested}" if requested == "bf16" else "")
        raise RecipeError("launcher and recipe disagree:", [Fault("training.precision", what)])


def sharding(size: int) -> str:
    """How the model is distributed over the ranks, by the launcher's environment."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        return "fsdp"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1"):
        return "deepspeed"
    return "ddp" if size > 1 else "none"


def on_main(world: World | None, work: Callable[[], Result]) -> Result:
    """The result of `work` on rank 0, broadcast to every rank; so is a `PeftkitError`."""
    if world is None or world.size == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    shared: list[Any] = [None, None]
    if world.is_main:
        try:
            shared[0] = work()
        except PeftkitError as error:
            shared[1] = error
    broadcast_object_list(shared, from_process=0)
    if shared[1] is not None:
        raise shared[1]
    return shared[0]  # type: ignore[no-any-return]


def on_main_first(world: World, work: Callable[[], Result]) -> Result:
    """The result of `work` on every rank; rank 0 runs it first, to fill caches."""
    if world.size > 1:
        on_main(world, lambda: bool(work()))
    return work()


def gather(world: World, values: list[Any]) -> list[Any]:
    """The lists of all ranks, concatenated, on every rank."""
    if world.size == 1:
        return values
    from accelerate.utils import gather_object

    return list(gather_object(values))


def any_rank(world: World, flag: bool) -> bool:
    """Whether `flag` is true on any rank; all ranks must call it together."""
    return bool(max_over_ranks(world, int(flag)))


def max_over_ranks(world: World, value: int) -> int:
    """The largest value of any rank; all ranks must call it together."""
    return value if world.size == 1 else _reduced(value, "MAX")


def sum_over_ranks(world: World, value: int) -> int:
    """The sum over the ranks; all ranks must call it together."""
    return value if world.size == 1 else _reduced(value, "SUM")


def _reduced(value: int, how: str) -> int:
    import torch
    import torch.distributed as distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    shared = torch.tensor([value], device=device)
    distributed.all_reduce(shared, op=getattr(distributed.ReduceOp, how))
    return int(shared.item())


def say(world: World | None, message: str) -> None:
    """Print a message to stderr on rank 0 (or if `world` is None)."""
    if world is None or world.is_main:
        print(message, file=sys.stderr, flush=True)


def share_of_batch(batch_size: int, size: int) -> int:
    """The examples per rank in each optimizer step.

    Raises `RunError` with the nearest valid batch sizes if the ranks do not divide the batch.
    """
    if batch_size % size:
        below, above = batch_size // size * size, -(-batch_size // size) * size
        nearest = " or ".join(str(n) for n in (below, above) if n)
        raise RunError(
            f"training.batch_size={batch_size} is not divisible by {size} ranks "
            f"- use training.batch_size={nearest}"
        )
    return batch_size // size


def environment_without_launcher() -> dict[str, str]:
    """The environment variables without those set by a launcher."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    others = ("TORCHELASTIC", "ACCELERATE_", "FSDP_", "GROUP_", "ROLE_")
    return {k: v for k, v in os.environ.items() if k not in ranks and not k.startswith(others)}


def subprocess_environment() -> dict[str, str]:
    """The environment of a Python subprocess without a rank, which finds the same modules, plug-ins
    included."""
    places = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    return {**environment_without_launcher(), "PYTHONPATH": places}


def execution_environment(world: World) -> dict[str, Any]:
    """What must be the same for a run to be resumed exactly, bit for bit."""
    return {
        "ranks": world.size,
        "threads": world.threads,
        "precision": world.precision,
        "sharding": world.sharding,
        "device": "cpu" if world.device.startswith("cpu") else world.device,
        "torch": importlib.metadata.version("torch"),
    }


def world_record(world: World, training: "Training", micro: int) -> WorldRecord:
    """Where a run was executed, and the speeds by which its precision was chosen."""
    measured = training.precision == "auto" and world.device.startswith("cpu")
    return WorldRecord(
        ranks=world.size,
        threads=world.threads,
        precision=world.precision,
        sharding=world.sharding,
        device=world.device,
        micro_batch_size=micro,
        operations_per_second=matmul_speeds() if measured else {},
    )


def versions() -> dict[str, str]:
    """Versions of Python, peftkit and the libraries that can change a result."""
    found = {"python": platform.python_version()}
    for name in ("peftkit", *LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            found[name] = "not installed"
    return found
