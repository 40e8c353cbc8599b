"""What a report says, as data: renderers and charts read it."""

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
    Standing,
)

REPORT_SCHEMA = 1


class ReportData(Settings):
    """Records side by side."""

    schema_version: int = REPORT_SCHEMA
    title: str
    metric: str
    reference: str
    """The label of the strategy that all are compared with."""
    margin: float
    """How much worse than the reference a cheaper strategy may be to be shipped: a share of the
    perfect score, or of the reference's where there is no perfect one (perplexity)."""
    rows: int
    """Test rows that all runs were scored on; of all folds together, in a cross-validation."""
    folds: int | None = None
    """How many folds the cross-validation has that the runs are of; null where they are of none."""
    verdict: list[str]
    standings: list[Standing]
    """The best mean first, strategies without a score last."""
    pairs: list[Pair]
    baseline: float | None
    """The score of the simplest answer there is: the majority class's, the mean's."""
    baselines: dict[str, float | None] = Field(default_factory=dict)
    """The scores of all answers without training, by what they are called; null: undefined."""
    validated_by: str = ""
    """The score on the validation split that training went by; of older reports the metric."""
    mixed: list[str]
    """What was mixed, where that was allowed."""
    unread: list[Fault]
    notes: list[str]
    curves: list[Curve] = Field(default_factory=list)
    """Validation scores while training, of strategies whose logs are there."""
    searches: list[Search] = Field(default_factory=list)
    confusions: list[Confusion] = Field(default_factory=list)
    disagreement: Disagreement | None = None
    """Among strategies on the same rows; null where fewer than two have predictions."""
