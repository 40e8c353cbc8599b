"""Strategies, one file per method. Subclass `Strategy` or `PeftStrategy` to add one."""

from peftkit.strategies.base import PeftStrategy, Strategy

__all__ = ["PeftStrategy", "Strategy"]
