"""Products of matrices: how many operations a second this machine does in each precision."""

import time

from peftkit.runtime import measurements

LEAST_PRODUCTS = 3
KINDS = ("bf16", "fp32")


def matmul_speeds() -> dict[str, float]:
    """Operations a second in 'bf16' and 'fp32', measured once on a machine and kept.

    A processor's flags do not tell: without instructions for bf16 its products are emulated, and
    slower than fp32's by a factor of hundreds. The matrices are small, for that takes time too.
    """
    known = measurements.find("products")
    if known is None:
        found = {kind: measure_matmul_speed(kind, side=256, seconds=0.1) for kind in KINDS}
        known = measurements.keep("products", found)
    return {kind: float(known[kind]) for kind in KINDS}


def measure_matmul_speed(precision: str, side: int = 1024, seconds: float = 0.3) -> float:
    """How fast this machine multiplies (side, side) matrices: the fastest of the products that
    were made in so many seconds, which nothing else on the machine held up."""
    import torch

    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.ones(side, side, dtype=kind, device=device)
    float((left @ left)[0, 0])  # the first product pays for the start
    took: list[float] = []
    while len(took) < LEAST_PRODUCTS or sum(took) < seconds:
        begun = time.perf_counter()
        float((left @ left)[0, 0])  # read, so that a GPU has done it
        took.append(time.perf_counter() - begun)
    return 2 * side**3 / min(took)
