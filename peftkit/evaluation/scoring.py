"""Scores of a trained model on the test rows, compared with baselines without training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftkit.config.recipe import Recipe
from peftkit.evaluation.baselines.cache import UNTRAINED
from peftkit.evaluation.code_execution import grade_predictions
from peftkit.evaluation.generation import generate_rows
from peftkit.evaluation.prediction import predict
from peftkit.loading.model import LoadedModel
from peftkit.metrics.bootstrap import score_of
from peftkit.metrics.counts import resampled_sums
from peftkit.metrics.registry import Score, gain
from peftkit.runtime.distributed import World
from peftkit.tasks.base import EvalSplit, Predictions, Scored, Task


def evaluate(
    recipe: Recipe,
    loaded: LoadedModel,
    given: EvalSplit,
    untrained: Mapping[str, Predictions],
    world: World,
) -> tuple[Predictions, Scored] | tuple[None, None]:
    """Return the trained model's predictions on the test rows and their scores; None without
    rows."""
    task = recipe.task
    if not len(given.examples):
        return None, None
    predictions = predict(loaded, task, given.examples, world)
    predictions = replace(predictions, **generate_rows(recipe, loaded, given.rows, world)._asdict())
    predictions = grade_predictions(task, predictions, given.rows, world, "trained model")
    known = {
        name: grade_predictions(task, found, given.rows, world, f"{name} base")
        for name, found in untrained.items()
    }
    return predictions, add_baselines(
        task, task.score(predictions, given), predictions, known, given
    )


def add_baselines(
    task: Task,
    scored: Scored,
    predictions: Predictions,
    untrained: Mapping[str, Predictions],
    given: EvalSplit,
) -> Scored:
    """Return the scores with those of the untrained baselines, and the differences to the untrained
    model."""
    # thresholds of the trained model's outputs mean nothing for the base's
    state = {k: v for k, v in given.fitted_state.items() if k not in task.fitted_on_validation}
    plain, details = replace(given, train=None, fitted_state=state), dict(scored.details)
    theirs = {name: task.score(found, plain).scores for name, found in untrained.items()}
    if UNTRAINED in untrained:
        pair = (predictions, untrained[UNTRAINED])
        ours, base = (task.counts(task.answers(each, plain), plain) for each in pair)
        details["better_than_untrained"] = score_gains(task, ours, base, given)
    simplest = scored.baseline or next(iter(theirs.values()), {})
    baselines = {**scored.baselines, **theirs}
    all_notes = [scored.notes, predictions.notes, *(each.notes for each in untrained.values())]
    notes = tuple(note for each in all_notes for note in each)
    notes += warn_if_unbeaten(task.headline, scored.scores, baselines)
    return Scored(scored.scores, simplest, details, baselines, notes)


def warn_if_unbeaten(
    headline: str, scores: Mapping[str, Score], baselines: Mapping[str, Mapping[str, Score]]
) -> tuple[str, ...]:
    """Return a note if the best baseline without training is at least as good."""
    known = {name: found[headline].value for name, found in baselines.items() if headline in found}
    values = {name: value for name, value in known.items() if value is not None}
    ours = scores[headline].value if headline in scores else None
    if ours is None or not values:
        return ()
    best = max(values, key=lambda name: gain(headline, values[name]))
    if gain(headline, values[best]) < gain(headline, ours):
        return ()
    comparison = f"{headline} {values[best]:.4f} on the same rows, this run {ours:.4f}"
    return (f"no better than no training: {best!r} has {comparison}",)


def score_gains(task: Task, ours: Any, theirs: Any, given: EvalSplit) -> dict[str, Any]:
    """Return how much each score is better than the base's, with its interval over the rows that
    both have; positive is better, also for scores where lower is better."""
    found = {}
    pairs = zip(task.parts(ours, given.names), task.parts(theirs, given.names), strict=False)
    for (mine, totals), (base, _) in pairs:
        known = ~np.isnan(mine).any(axis=1) & ~np.isnan(base).any(axis=1)
        if not known.any():
            continue
        both = mine[known], base[known]
        points = [totals(counts.sum(axis=0, keepdims=True)) for counts in both]
        # by one seed, so that both are drawn over the same rows
        draws = [totals(resampled_sums(counts, max(1, given.resamples), 0)) for counts in both]
        for name in points[0]:
            value, resampled = (score_gain(name, each) for each in (points, draws))
            found[name] = score_of(float(value[0]), resampled, int(known.sum())).model_dump()
    return found


def score_gain(name: str, pair: Sequence[Any]) -> Any:
    """Return the difference of a score between the first and the second, positive if the first is
    better."""
    return gain(name, 1.0) * (pair[0][name] - pair[1][name])
