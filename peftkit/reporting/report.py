"""Compare recorded runs: scores with their uncertainty, costs, and a recommendation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from peftkit.errors import RunError, nearest
from peftkit.metrics.registry import METRICS
from peftkit.records.record import RunRecord
from peftkit.reporting.analysis.alignment import AlignedScores, align_rows
from peftkit.reporting.analysis.baselines import baselines_of, validated_by
from peftkit.reporting.analysis.compatibility import (
    check_compatible,
    differing,
    find_incompatibilities,
)
from peftkit.reporting.analysis.cross_validation import CrossValidation, find_cross_validation
from peftkit.reporting.analysis.details import confusions_of, curves_of, searches_of
from peftkit.reporting.analysis.differences import Differences, differences
from peftkit.reporting.analysis.disagreement import disagreement_of
from peftkit.reporting.analysis.notes import notes_of
from peftkit.reporting.analysis.paired_tests import SeedsAndRows
from peftkit.reporting.analysis.pareto import pareto_status
from peftkit.reporting.analysis.records import Run, load_records
from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.analysis.summaries import (
    StrategyRuns,
    StrategySummary,
    average_by_replicate,
    group_by_strategy,
    seconds_to,
    summarize,
)
from peftkit.reporting.analysis.verdict import Question, verdict
from peftkit.reporting.render.files import write_report
from peftkit.reporting.render.markdown import markdown


class Report(ReportData):
    """A report that can be written to files; `str()` is its Markdown."""

    def __str__(self) -> str:
        return markdown(self)

    def write(self, folder: Path, png: bool = False) -> list[Path]:
        """Write `report.md`, `.csv`, `.json` and `.html` into `folder`, and each chart as
        `charts/NAME.svg`, with `png` as PNG too. Returns the paths of the files."""
        return write_report(self, folder, png)


def report(
    records: Iterable[RunRecord | Path | str] | RunRecord | Path | str,
    reference: str | None = None,
    metric: str | None = None,
    margin: float = 0.01,
    allow_mixed: bool = False,
    root: Path = Path("runs"),
) -> Report:
    """Compare runs, given as records, their directories, or directories of those.

    `reference` is the label or the kind of the strategy to compare with (default: full fine-tuning,
    else the strategy with the most trainable weights), `metric` one of the recorded scores
    (default: the headline score), `margin` the loss that a cheaper strategy may have. `root` is
    where the directories of records in memory are. Raises `RunError` if the runs are not
    comparable, unless `allow_mixed`.
    """
    loaded = load_records(records, root)
    mixed = find_incompatibilities(loaded.runs)
    check_compatible({} if allow_mixed else mixed)
    metric = metric_of(loaded.runs, metric)
    scale = Scale(metric)
    strategies = group_by_strategy(loaded.runs)
    cross_validation = find_cross_validation(loaded.runs)
    aligned = aligned_scores(strategies, metric, cross_validation, allow_mixed)
    first = [summarize(each, scores_of(each, metric, aligned)) for each in strategies]
    base = strategies[first.index(reference_of(first, reference, scale))]
    compared = compare_all(strategies, first, aligned, base.label, cross_validation, scale)
    pareto = pareto_status(first, compared.pairs, "hardware" in mixed, scale.lower)
    summaries = [
        completed(each, summary, base, compared, pareto, bool(mixed))
        for each, summary in zip(strategies, first, strict=True)
    ]
    summaries.sort(key=lambda each: (each.mean is None, -scale.gain(each.mean), each.label))
    order = {each.label: place for place, each in enumerate(summaries)}
    best_first = sorted(strategies, key=lambda each: order[each.label])
    baselines = baselines_of(loaded.runs, metric, mixed)
    folds = cross_validation.folds if cross_validation else None
    rows = aligned.rows or max((run.record.rows.get("test", 0) for run in loaded.runs), default=0)
    question = Question(summaries, base.label, metric, margin, rows, baselines, tuple(mixed), folds)
    return Report(
        title=title_of(loaded.runs, metric),
        metric=metric,
        reference=base.label,
        margin=margin,
        rows=rows,
        folds=folds,
        verdict=verdict(question),
        strategies=summaries,
        pairs=compared.pairs,
        baseline=next(iter(baselines.values()), None),
        baselines=baselines,
        validated_by=validated_by(loaded.runs[0]),
        mixed=[f"{fact}: {' / '.join(values)}" for fact, values in mixed.items()],
        unread=loaded.unread,
        notes=notes_of(loaded, strategies, aligned, summaries, base.label),
        curves=curves_of(best_first),
        searches=searches_of(best_first),
        confusions=confusions_of(best_first),
        disagreement=disagreement_of(best_first, aligned),
    )


def metric_of(runs: Sequence[Run], requested: str | None) -> str:
    """The metric to report: the requested one, else the headline of the first run.

    Raises `RunError` if a finished run has no such score.
    """
    metric = requested or runs[0].record.headline
    for run in runs:
        if run.finished and metric not in run.record.scores:
            raise RunError(
                f"{run.where}: has no score called {metric!r} - "
                f"{nearest(metric, run.record.scores)}"
            )
    return metric


def aligned_scores(
    strategies: Sequence[StrategyRuns],
    metric: str,
    cross_validation: CrossValidation | None,
    allow_mixed: bool,
) -> AlignedScores:
    """The scores of all finished runs on their common test rows; folds have none in common."""
    if cross_validation is not None:
        return AlignedScores({}, cross_validation.rows, cross_validation.missing(strategies))
    return align_rows([run for each in strategies for run in each.finished], metric, allow_mixed)


def scores_of(strategy: StrategyRuns, metric: str, aligned: AlignedScores) -> dict[int, float]:
    """A strategy's scores by seed or fold: on the common rows if known, else as recorded."""

    def score(run: Run) -> float | None:
        own = aligned.values.get(run.where)
        return run.record.scores[metric].value if own is None else float(own.mean())

    return average_by_replicate((run.replicate, score(run)) for run in strategy.finished)


def reference_of(
    summaries: Sequence[StrategySummary], requested: str | None, scale: Scale
) -> StrategySummary:
    """The strategy to compare with; raises `RunError` if the requested one has no score."""
    if requested is not None:
        named = [each for each in summaries if requested in (each.label, each.strategy)]
        exact = [each for each in named if each.label == requested] or named
        if not exact:
            labels = [each.label for each in summaries]
            raise RunError(f"no strategy is called {requested!r} - {nearest(requested, labels)}")
        if exact[0].mean is None:
            raise RunError(f"{exact[0].label} has no score to compare with - choose another")
        return exact[0]
    candidates = [each for each in summaries if each.mean is not None] or list(summaries)
    full = [each for each in candidates if each.strategy == "full"]
    return max(full or candidates, key=lambda each: (each.trainable or 0, scale.gain(each.mean)))


def compare_all(
    strategies: Sequence[StrategyRuns],
    summaries: Sequence[StrategySummary],
    aligned: AlignedScores,
    reference: str,
    cross_validation: CrossValidation | None,
    scale: Scale,
) -> Differences:
    """The differences among all strategies that have predictions, or folds."""
    order = sorted(summaries, key=lambda each: -scale.gain(each.mean))
    if cross_validation is not None:
        scores = {each.label: each.scores for each in order if each.scores}
        return differences(scores, reference, cross_validation)
    by_label = {each.label: each for each in strategies}
    rows = {
        each.label: {
            run.seed: aligned.values[run.where]
            for run in by_label[each.label].finished
            if run.where in aligned.values
        }
        for each in order
    }
    known = {label: found for label, found in rows.items() if found}
    return differences(known, reference, SeedsAndRows(aligned.step)) if known else Differences()


def completed(
    strategy: StrategyRuns,
    summary: StrategySummary,
    base: StrategyRuns,
    compared: Differences,
    pareto: dict[str, dict[str, str]],
    mixed: bool,
) -> StrategySummary:
    """The summary together with what depends on the other strategies."""
    targets = [record.validation.get("score") for record in base.records]
    known = [value for value in targets if value is not None and math.isfinite(value)]
    target = sum(known) / len(known) if known else None
    seconds, reached = seconds_to(strategy, target, validated_by(base.runs[0]))
    low, high = compared.intervals.get(summary.label, (None, None))
    return summary.model_copy(
        update={
            "measures": {**summary.measures, "seconds_to_reference": seconds},
            "reached": reached,
            "low": low,
            "high": high,
            "difference": compared.to_reference.get(summary.label),
            "groups": compared.groups.get(summary.label, ""),
            "pareto": pareto.get(summary.label, {}),
            "mixed": differing(strategy.runs, base.runs) if mixed else [],
        }
    )


def title_of(runs: Sequence[Run], metric: str) -> str:
    """What is compared on which data; of a fallback data set its own name."""
    names = sorted({run.record.data.used for run in runs})
    library = "" if metric in METRICS or "[" in metric else " (evaluate)"
    return f"{', '.join(names)}: {metric}{library} by strategy"
