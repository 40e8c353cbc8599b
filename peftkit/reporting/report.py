"""Reporting: records side by side, with the truth about their noise; it reads records only."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peftkit.errors import RunError, nearest
from peftkit.metrics.registry import METRICS
from peftkit.records.record import RunRecord
from peftkit.reporting.analysis.alignment import Aligned, align
from peftkit.reporting.analysis.baselines import baselines_of, validated_by
from peftkit.reporting.analysis.compatibility import differing, mixtures, refuse
from peftkit.reporting.analysis.cross_validation import Folding, folding_of
from peftkit.reporting.analysis.details import (
    confusions_of,
    curves_of,
    searches_of,
)
from peftkit.reporting.analysis.differences import Differences, Pair, differences
from peftkit.reporting.analysis.disagreement import disagreement_of
from peftkit.reporting.analysis.notes import notes_of
from peftkit.reporting.analysis.paired_tests import SeedsAndRows
from peftkit.reporting.analysis.pareto import AXES, fronts
from peftkit.reporting.analysis.records import Run, gather
from peftkit.reporting.analysis.results import ReportData
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.analysis.summaries import (
    Member,
    Standing,
    averaged,
    members_of,
    seconds_to,
    standing_of,
)
from peftkit.reporting.analysis.verdict import Question, verdict
from peftkit.reporting.render.files import write_report
from peftkit.reporting.render.markdown import markdown
from peftkit.reporting.render.svg import Drawing


class Report(ReportData):
    """A report that can be written; `str()` is its Markdown."""

    def __str__(self) -> str:
        return markdown(self)

    def write(self, folder: Path, png: bool = False, drawing: Drawing | None = None) -> list[Path]:
        """Write `report.md`, `.csv`, `.json` and `.html` into `folder`, each at once, and every
        picture as `pictures/NAME.svg`, with `png` as PNG too; by `drawing` where one is ready."""
        with drawing or Drawing() as ready:
            return write_report(self, folder, png, ready)


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's search for cycles put off: among the parts of 1,000 records it finds none, and takes
    a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def report(
    records: Iterable[RunRecord | Path | str] | RunRecord | Path | str,
    reference: str | None = None,
    metric: str | None = None,
    margin: float = 0.01,
    allow_mixed: bool = False,
    root: Path = Path("runs"),
) -> Report:
    """The comparison of runs: records, their folders, or folders of those.

    `reference` is a label or a kind (default: full fine-tuning, else what trains the most),
    `metric` one of the records' scores (default: the headline), `margin` what a cheaper strategy
    may lose. `root` holds the directories of records that do not know their own. Raises `RunError`
    where the runs do not belong in one table, unless `allow_mixed`.
    """
    found = gather(records, root)
    mixed = mixtures(found.runs)
    refuse({} if allow_mixed else mixed)
    metric = metric_of(found.runs, metric)
    members = members_of(found.runs)
    counted_runs = [run for member in members for run in member.finished]
    folding = folding_of(found.runs)
    aligned = (
        align(counted_runs, metric, allow_mixed)
        if folding is None
        else Aligned({}, folding.rows, folding.missing(members))
    )
    standings = [standing_of(member, scores_of(member, metric, aligned)) for member in members]
    scale = Scale(metric)
    base = members[standings.index(reference_of(standings, reference, scale))]
    compared = compare_all(members, standings, aligned, base.label, folding, scale)
    rows = aligned.rows or max((run.record.rows.get("test", 0) for run in found.runs), default=0)
    done = [
        completed(member, standing, base, compared, bool(mixed))
        for member, standing in zip(members, standings, strict=True)
    ]
    done = marked(done, compared.pairs, scale, "hardware" in mixed)
    done.sort(key=lambda each: (each.mean is None, -scale.gain(each.mean), each.label))
    baselines = baselines_of(found.runs, metric, mixed)
    folds = folding.folds if folding else None
    asked = Question(done, base.label, metric, margin, rows, baselines, tuple(mixed), folds)
    made = Report(
        title=title_of(found.runs, metric),
        metric=metric,
        reference=base.label,
        margin=margin,
        rows=rows,
        folds=folds,
        verdict=verdict(asked),
        standings=done,
        pairs=compared.pairs,
        baseline=next(iter(baselines.values()), None),
        baselines=baselines,
        validated_by=validated_by(found.runs[0]),
        mixed=[f"{fact}: {' / '.join(values)}" for fact, values in mixed.items()],
        unread=found.unread,
        notes=notes_of(found, members, aligned, done, base.label),
    )
    return detailed(made, members, aligned)


def marked(
    done: list[Standing], pairs: list[Pair], scale: Scale, machines_differ: bool
) -> list[Standing]:
    """The standings with their marks on the fronts; costs of other machines are no costs of one."""
    marks = fronts(done, pairs, AXES[:1] if machines_differ else AXES, scale.lower)
    return [each.model_copy(update={"front": marks.get(each.label, {})}) for each in done]


def detailed(made: Report, members: Sequence[Member], aligned: Aligned) -> Report:
    """The report with what its pictures are drawn of beside the table."""
    by_label = {member.label: member for member in members}
    best_first = [by_label[each.label] for each in made.standings]
    return made.model_copy(
        update={
            "curves": curves_of(best_first),
            "searches": searches_of(best_first),
            "confusions": confusions_of(best_first),
            "disagreement": disagreement_of(best_first, aligned),
        }
    )


def metric_of(runs: Sequence[Run], asked: str | None) -> str:
    """The metric to report: the headline, or one that every finished run has."""
    metric = asked or runs[0].record.headline
    for run in runs:
        if run.finished and metric not in run.record.scores:
            raise RunError(
                f"{run.where}: has no score called {metric!r} - "
                f"{nearest(metric, run.record.scores)}"
            )
    return metric


def scores_of(member: Member, metric: str, aligned: Aligned) -> dict[int, float]:
    """A strategy's scores by seed, or by fold: on the aligned rows, else as recorded; undefined is
    left out."""

    def score(run: Run) -> float | None:
        own = aligned.values.get(run.where)
        return run.record.scores[metric].value if own is None else float(own.mean())

    return averaged((run.turn, score(run)) for run in member.finished)


def reference_of(
    standings: Sequence[Standing], asked: str | None, scale: Scale | None = None
) -> Standing:
    """The strategy to compare with."""
    if asked is not None:
        named = [each for each in standings if asked in (each.label, each.strategy)]
        exact = [each for each in named if each.label == asked] or named
        if not exact:
            labels = [each.label for each in standings]
            raise RunError(f"no strategy is called {asked!r} - {nearest(asked, labels)}")
        if exact[0].mean is None:
            raise RunError(f"{exact[0].label} has no score to compare with - choose another")
        return exact[0]
    able = [each for each in standings if each.mean is not None] or list(standings)
    full = [each for each in able if each.strategy == "full"]
    better = (scale or Scale("")).gain
    return max(full or able, key=lambda each: (each.trainable or 0, better(each.mean)))


def compare_all(
    members: Sequence[Member],
    standings: Sequence[Standing],
    aligned: Aligned,
    reference: str,
    folding: Folding | None,
    scale: Scale,
) -> Differences:
    """The differences among all strategies whose predictions are there, or whose folds are."""
    order = sorted(standings, key=lambda each: -scale.gain(each.mean))
    if folding is not None:
        return differences({s.label: s.scores for s in order if s.scores}, reference, folding)
    by_label = {member.label: member for member in members}
    scores = {
        each.label: {
            run.seed: aligned.values[run.where]
            for run in by_label[each.label].finished
            if run.where in aligned.values
        }
        for each in order
    }
    kept = {label: found for label, found in scores.items() if found}
    return differences(kept, reference, SeedsAndRows(aligned.step)) if kept else Differences()


def completed(
    member: Member, standing: Standing, base: Member, compared: Differences, mixed: bool
) -> Standing:
    """A standing with what the other strategies are needed for."""
    targets = [r.validation.get("score") for r in base.records]
    known = [value for value in targets if value is not None and math.isfinite(value)]
    target = sum(known) / len(known) if known else None
    seconds, reached = seconds_to(member, target, validated_by(base.runs[0]))
    low, high = compared.intervals.get(standing.label, (None, None))
    return standing.model_copy(
        update={
            "measures": {
                **standing.measures,
                "seconds_to_reference": seconds,
            },
            "reached": reached,
            "low": low,
            "high": high,
            "difference": compared.to_reference.get(standing.label),
            "groups": compared.groups.get(standing.label, ""),
            "mixed": differing(member.runs, base.runs) if mixed else [],
        }
    )


def title_of(runs: Sequence[Run], metric: str) -> str:
    """What is compared on which data; a stand-in is never called by what it stands for."""
    names = sorted({run.record.data.used for run in runs})
    about = "" if metric in METRICS or "[" in metric else " (evaluate)"
    return f"{', '.join(names)}: {metric}{about} by strategy"
