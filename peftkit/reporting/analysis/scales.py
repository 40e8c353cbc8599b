"""Scales: which way a score is better, and in what unit a difference of it is told."""

from __future__ import annotations

from dataclasses import dataclass

from peftkit.metrics.registry import find_metric, gain


@dataclass(frozen=True)
class Scale:
    """How differences of one metric are read."""

    metric: str

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return not find_metric(self.metric).higher_is_better

    @property
    def top(self) -> float | None:
        """The perfect score, a hundredth of which is a point; None for scores in a unit of their
        own, such as those of which less is better."""
        return find_metric(self.metric).best

    @property
    def smallest_step(self) -> float | None:
        """What one row's difference can come to at the least where two runs differ in it; None
        where rows' scores are no hits and differ by as little as may be."""
        return None if find_metric(self.metric).is_continuous else self.top

    def gain(self, value: float | None) -> float:
        """The value as a number of which more is better; what is unknown counts as 0."""
        return gain(self.metric, value or 0.0)

    def told(self, value: float, signed: bool = True) -> str:
        """A difference without its unit: in points where the score has those."""
        number = value if self.top is None else 100 * value / self.top
        form = ".4g" if self.top is None else ".1f"
        return format(number, f"+{form}" if signed else form)

    @property
    def unit(self) -> str:
        """What stands behind a difference that is told."""
        return " in its own unit" if self.top is None else " points"

    def allowed(self, margin: float, reference: float | None) -> float:
        """What a strategy may lose: the margin is a share of the perfect score, or of the
        reference's where there is no perfect one."""
        return margin * (abs(reference or 0.0) if self.top is None else self.top)

    def margin_told(self, margin: float, reference: str) -> str:
        """The margin below (or above) a reference, in words."""
        if self.top is None:
            side = "above" if self.lower else "below"
            return f"at most {100 * margin:.1f} % {side} {reference}"
        return f"at most {100 * margin:.1f} points below {reference}"
