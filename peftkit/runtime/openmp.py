"""OpenMP: how long torch's waiting threads spin, which must be set before torch is imported."""

import os

SPINS = "2000"
"""Iterations that a waiting thread of libgomp spins before it sleeps: about 100 microseconds.
libgomp's default is 300,000, up to 15 ms."""


def wait_briefly() -> None:
    """Make waiting threads sleep early, unless the environment configures it.

    A spinning thread blocks a core on which the thread that it waits for could run: next to other
    processes, two threads on two cores trained at a fifth of the speed (benchmarks/LOG.md). No
    effect once torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
