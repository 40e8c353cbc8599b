"""The direction of a metric, and the unit in which its differences are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftkit.metrics.registry import find_metric, gain


@dataclass(frozen=True)
class Scale:
    """How the values of one metric and their differences are read."""

    metric: str

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return not find_metric(self.metric).higher_is_better

    @property
    def top(self) -> float | None:
        """The perfect score, a hundredth of which is a point; None for metrics without one."""
        return find_metric(self.metric).best

    @property
    def smallest_step(self) -> float | None:
        """The smallest difference in one row between two runs that differ in it; None for metrics
        that compare numbers, which differ by any amount."""
        return None if find_metric(self.metric).is_continuous else self.top

    @property
    def unit(self) -> str:
        """The unit of a difference, with a space before it."""
        return f" {self.metric}" if self.top is None else " points"

    def gain(self, value: float | None) -> float:
        """The value as a number of which more is better; unknown counts as 0."""
        return gain(self.metric, value or 0.0)

    def describe(self, value: float, signed: bool = True) -> str:
        """A difference without its unit: in points, if the metric has a perfect score."""
        sign = "+" if signed else ""
        if self.top is None:
            return format(value, f"{sign}.4g")
        return format(round(100 * value / self.top, 1) + 0.0, f"{sign}.1f")  # no "-0.0"

    def allowed(self, margin: float, reference: float | None) -> float:
        """The acceptable loss: `margin` as a share of the perfect score, or of the reference's
        score for metrics without one."""
        return margin * (abs(reference or 0.0) if self.top is None else self.top)

    def describe_margin(self, margin: float) -> str:
        """The margin in words: 'within 1 point'."""
        number = f"{100 * margin:.4g}"
        if self.top is None:
            return f"within {number} %"
        return f"within {number} {'point' if number == '1' else 'points'}"

    def within_range(self, low: float, high: float) -> tuple[float, float]:
        """The ends of an axis, cut to the values that the metric can have."""
        least, most = find_metric(self.metric).range
        return max(low, least), min(high, most) if math.isfinite(most) else high
