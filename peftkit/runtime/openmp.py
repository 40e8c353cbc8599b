"""OpenMP: how torch's threads wait for each other, which must be said before torch is loaded."""

import os

SPINS = "2000"
"""Turns that a waiting thread of libgomp takes before it sleeps: some 100 microseconds where a turn
is long. libgomp's own default is 300,000, up to 15 ms."""


def wait_briefly() -> None:
    """Have threads that wait sleep soon, unless the environment says how they should wait.

    A thread that spins holds a core on which the thread it waits for could run: beside other
    processes two threads on two cores trained at a fifth of the speed (benchmarks/LOG.md). It has
    no effect where torch is loaded already.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
