"""The speed of matrix products on this machine, in each precision."""

import time

from peftkit.runtime import measurements

MIN_PRODUCTS = 3
KINDS = ("bf16", "fp32")


def matmul_speeds() -> dict[str, float]:
    """Operations per second in 'bf16' and 'fp32', measured once per machine and cached.

    A processor's flags do not tell: without bf16 instructions its products are emulated, and slower
    by a factor of hundreds. The matrices are small to keep the measurement short.
    """
    known = measurements.find("products")
    if known is None:
        found = {kind: measure_matmul_speed(kind, side=256, seconds=0.1) for kind in KINDS}
        known = measurements.keep("products", found)
    return {kind: float(known[kind]) for kind in KINDS}


def measure_matmul_speed(precision: str, side: int = 1024, seconds: float = 0.3) -> float:
    """Operations per second of (side, side) matrix products: of the fastest within `seconds`, so
    that other load on the machine has no effect."""
    import torch

    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.ones(side, side, dtype=kind, device=device)
    float((left @ left)[0, 0])  # warm-up
    took: list[float] = []
    while len(took) < MIN_PRODUCTS or sum(took) < seconds:
        started = time.perf_counter()
        float((left @ left)[0, 0])  # waits for a GPU
        took.append(time.perf_counter() - started)
    return 2 * side**3 / min(took)
