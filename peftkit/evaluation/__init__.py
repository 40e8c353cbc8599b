"""Evaluation of a model: predictions, generated texts, scores, and baselines without training."""
