"""Prove a merge: compare the merged checkpoint with base model plus adapter."""
