"""Peak memory of this process, on the GPU or the CPU."""

import resource
import sys
from pathlib import Path


def peak_bytes() -> tuple[int, int | None]:
    """The peak memory in bytes: (allocated, reserved) on a GPU, else (resident set, None)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return peak_resident_bytes(), None


def reset_peak_bytes() -> bool:
    """Reset what `peak_bytes` measures; returns False if the system does not support it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: proc_pid_clear_refs(5)
    except OSError:  # kernels without CONFIG_PROC_PAGE_MONITOR, or a restricted /proc
        return False
    return True


def peak_resident_bytes() -> int:
    """The peak resident set size of this process, in bytes.

    On Linux `ru_maxrss` is inherited from the parent process; /proc has this process's own.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
