"""Merge adapters into ordinary checkpoints, and prove the result."""
