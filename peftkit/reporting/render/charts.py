"""All charts of a report."""

from __future__ import annotations

from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.render.cost_charts import cost_pictures
from peftkit.reporting.render.detail_charts import detail_pictures
from peftkit.reporting.render.matrix_charts import matrix_pictures
from peftkit.reporting.render.picture import Picture

NAMES = (
    "score_by_parameters",
    "score_by_memory",
    "score_by_time",
    "learning_curves",
    "rate_search",
    "confusion",
    "disagreement",
)
"""All pictures that there can be."""


def pictures(report: ReportData) -> list[Picture]:
    """All pictures that the report holds data for."""
    return [*cost_pictures(report), *detail_pictures(report), *matrix_pictures(report)]


def missing(report: ReportData) -> list[str]:
    """A sentence for each picture that cannot be drawn."""
    wanted = {
        "No learning curves: no log lies beside the records.": report.curves,
        "No rate search: the learning rates were given, not searched for.": report.searches,
        "No confusion matrices: the records hold none.": report.confusions,
        "No disagreement between strategies: fewer than two have predictions of the same rows.": (
            report.disagreement
        ),
    }
    return [sentence for sentence, there in wanted.items() if not there]
