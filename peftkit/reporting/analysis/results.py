"""The content of a report as data, which tables, pages and charts read."""

from __future__ import annotations

from pydantic import Field

from peftkit.errors import Fault
from peftkit.registry import Settings
from peftkit.reporting.analysis.details import (
    Confusion,
    Curve,
    Search,
)
from peftkit.reporting.analysis.differences import Pair
from peftkit.reporting.analysis.disagreement import Disagreement
from peftkit.reporting.analysis.summaries import (
    StrategySummary,
)

REPORT_SCHEMA = 2


class ReportData(Settings):
    """A comparison of recorded runs."""

    schema_version: int = REPORT_SCHEMA
    title: str
    metric: str
    reference: str
    """The label of the strategy that all others are compared with."""
    margin: float
    """The acceptable loss of a cheaper strategy: a share of the perfect score, or of the
    reference's score if there is no perfect one (perplexity)."""
    rows: int
    """Test rows that all runs were scored on; in a cross-validation, of all folds together."""
    folds: int | None = None
    """Number of folds of a cross-validation; null without one."""
    verdict: list[str]
    """The recommendation in one plain sentence, then the statistics and warnings."""
    strategies: list[StrategySummary]
    """The best mean first, strategies without a score last."""
    pairs: list[Pair]
    baseline: float | None
    """The score of the simplest answer: the majority class, the mean."""
    baselines: dict[str, float | None] = Field(default_factory=dict)
    """The scores of all answers without training, by name; null if undefined."""
    validated_by: str = ""
    """The metric of the validation scores; empty in older reports."""
    mixed: list[str]
    """Facts in which the runs differ, if that was allowed."""
    unread: list[Fault]
    notes: list[str]
    curves: list[Curve] = Field(default_factory=list)
    """Validation scores during training, of strategies with logs."""
    searches: list[Search] = Field(default_factory=list)
    confusions: list[Confusion] = Field(default_factory=list)
    disagreement: Disagreement | None = None
    """Between strategies on the same rows; null if fewer than two have predictions."""
