"""Checkpoint files: their tensors, and how those are named."""
