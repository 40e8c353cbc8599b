"""The process a run is in: ranks, threads, precision, and measurements of the machine."""
