"""Notes: what a reader of a report's numbers must know beside them."""

from __future__ import annotations

from collections.abc import Sequence

from peftkit.reporting.analysis.alignment import Aligned
from peftkit.reporting.analysis.records import Evidence, counted, listed
from peftkit.reporting.analysis.summaries import Member, Standing


def notes_of(
    found: Evidence,
    members: Sequence[Member],
    aligned: Aligned,
    standings: Sequence[Standing],
    reference: str,
) -> list[str]:
    """What a reader of the numbers must know."""
    runs = [run for member in members for run in member.finished]
    notes = [*found.notes, *aligned.notes]
    notes += [f"{member.label}: {note}" for member in members for note in member.notes]
    steps = sorted({run.record.steps for run in runs})
    if len(steps) > 1:
        notes.append(f"the runs took different numbers of steps: {steps[0]} to {steps[-1]}")
    inexact = [run.where for run in runs if not run.record.exact]
    if inexact:
        notes.append(f"{counted(len(inexact), 'run is', 'runs are')} inexact: {listed(inexact)}")
    fallbacks = {run.record.data.requested for run in runs if run.record.data.is_fallback}
    notes += [f"a fallback data set was scored, not {name}" for name in sorted(fallbacks)]
    return notes + of_comparisons(standings, reference)


def of_comparisons(standings: Sequence[Standing], reference: str) -> list[str]:
    """Strategies that could not be compared with the reference."""
    missing = [
        each.label
        for each in standings
        if each.seeds and each.difference is None and each.label != reference
    ]
    if not missing:
        return []
    why = "for want of common seeds, folds or predictions"
    return [f"not compared with {reference}, {why}: {listed(missing)}"]
