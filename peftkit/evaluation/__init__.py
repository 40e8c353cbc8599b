"""Evaluate a model: predictions, generated texts, scores, and the baselines beside them."""
