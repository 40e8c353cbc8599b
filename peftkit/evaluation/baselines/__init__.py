"""Baselines of the base model without training: zero-shot, few-shot and nearest centroid."""
