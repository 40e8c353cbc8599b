"""Metrics with bootstrap intervals."""
