"""Notes that a reader of a report needs to interpret its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from peftkit.reporting.analysis.alignment import AlignedScores
from peftkit.reporting.analysis.records import LoadedRecords, counted, listed
from peftkit.reporting.analysis.summaries import StrategyRuns, StrategySummary


def notes_of(
    found: LoadedRecords,
    strategies: Sequence[StrategyRuns],
    aligned: AlignedScores,
    summaries: Sequence[StrategySummary],
    reference: str,
) -> list[str]:
    """All notes of a report."""
    runs = [run for strategy in strategies for run in strategy.finished]
    notes = [*found.notes, *aligned.notes]
    notes += [f"{strategy.label}: {note}" for strategy in strategies for note in strategy.notes]
    steps = sorted({run.record.steps for run in runs})
    if len(steps) > 1:
        notes.append(f"the runs took different numbers of steps: {steps[0]} to {steps[-1]}")
    inexact = [run.where for run in runs if not run.record.exact]
    if inexact:
        notes.append(f"{counted(len(inexact), 'run is', 'runs are')} inexact: {listed(inexact)}")
    fallbacks = {run.record.data.requested for run in runs if run.record.data.is_fallback}
    notes += [f"a fallback data set was scored, not {name}" for name in sorted(fallbacks)]
    return notes + of_comparisons(summaries, reference)


def of_comparisons(summaries: Sequence[StrategySummary], reference: str) -> list[str]:
    """Strategies that could not be compared with the reference."""
    missing = [
        each.label
        for each in summaries
        if each.seeds and each.difference is None and each.label != reference
    ]
    if not missing:
        return []
    why = "without common seeds, folds or predictions"
    return [f"not compared with {reference}, {why}: {listed(missing)}"]
