"""Baselines of the untrained base model: zero-shot, few-shot and nearest centroid."""
