"""The recommendation of a report: one plain sentence, then the statistics behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from scipy.special import gammaincinv

from peftkit.reporting.analysis.differences import INTERVAL, LEVEL, SIMULTANEOUS
from peftkit.reporting.analysis.records import counted
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.analysis.summaries import Difference, StrategySummary

ENOUGH_SEEDS = 5
FEW_ROWS = 100
"""Below these, intervals that assume sums of many rows are rough."""
NONE_BEATS = "None of these beats answering without training: use none."


@dataclass(frozen=True)
class Question:
    """What a verdict is about."""

    summaries: Sequence[StrategySummary]
    reference: str
    metric: str
    margin: float
    rows: int
    baselines: Mapping[str, float | None]
    """The scores of answers without training on the same rows, by name."""
    mixed: tuple[str, ...] = ()
    """Facts in which the runs differ, where that was allowed."""
    folds: int | None = None
    """The number of folds of a cross-validation; None if runs differ by their seeds."""

    @property
    def scale(self) -> Scale:
        """The direction and the unit of the metric."""
        return Scale(self.metric)

    @property
    def scored(self) -> list[StrategySummary]:
        """Strategies that have a mean."""
        return [each for each in self.summaries if each.mean is not None]

    @property
    def compared(self) -> list[tuple[StrategySummary, Difference]]:
        """Strategies with their difference to the reference."""
        return [(each, each.difference) for each in self.scored if each.difference is not None]

    @property
    def base(self) -> StrategySummary:
        """The summary of the reference."""
        return next(each for each in self.summaries if each.label == self.reference)

    @property
    def seeds(self) -> int:
        """The smallest number of seeds, or folds, of a comparison."""
        return min((len(found.seeds) for _, found in self.compared), default=0)

    @property
    def best_baseline(self) -> tuple[str, float] | None:
        """The name and the score of the best answer without training."""
        known = [(name, value) for name, value in self.baselines.items() if value is not None]
        return max(known, key=lambda pair: self.scale.gain(pair[1]), default=None)


def verdict(question: Question) -> list[str]:
    """Sentences: the recommendation first, then the statistics and the warnings."""
    scored = question.scored
    if not scored:
        return ["No recommendation: no run has a score."]
    if len(scored) == 1:
        [only] = scored
        what = f"only {only.label} has a score ({only.mean:.4f})"
        return [f"No comparison: {what}.", *baseline_warning(question, only)]
    if not question.compared:
        lack = "a seed and predictions of the same test rows" if question.folds is None else "folds"
        return [f"No recommendation: no two strategies share {lack}."]
    chosen, reason, difference = choose(question)
    headline = f"Use {chosen.label}: {reason}{price(question, chosen)}."
    none_beats = not any(beats_baseline(question, each) for each in scored)
    return [
        NONE_BEATS if none_beats else headline,
        difference,
        *mixed_warning(question),
        *([] if none_beats else cost_of(question, chosen)),
        *baseline_warning(question, chosen),
        *group_sentence(question),
        *failure_sentences(question),
        *limits(question),
    ]


def choose(question: Question) -> tuple[StrategySummary, str, str]:
    """The recommended strategy, the reason in plain words, and the difference behind it.

    It is the cheapest of those shown to beat the reference, else the cheapest of those shown to be
    at most the margin below it, else the reference.
    """
    scale, reference = question.scale, question.reference
    allowed = scale.allowed(question.margin, question.base.mean)
    margin = scale.describe_margin(question.margin)
    sound = [(each, d) for each, d in question.compared if not each.failures]
    winners = [(e, d) for e, d in sound if d.p_corrected < LEVEL and scale.gain(d.value) > 0]
    near = [
        (each, d)
        for each, d in sound
        if worst_case(d, scale) > -allowed and weights(each) < weights(question.base)
    ]
    if winners or near:
        chosen, found = min(winners or near, key=lambda pair: weights(pair[0]))
        reason = f"as good as {reference} {margin}"
        if winners:
            size = scale.describe(abs(found.value), signed=False)
            reason = f"better than {reference} by {size}{scale.unit}"
        return chosen, reason, describe_difference(chosen.label, found, question)
    best, nearest = max(question.compared, key=lambda each: worst_case(each[1], scale))
    reason = f"nothing else is shown to be better, nor anything cheaper to be as good {margin}"
    return question.base, reason, f"Closest: {describe_difference(best.label, nearest, question)}"


def beats_baseline(question: Question, summary: StrategySummary) -> bool:
    """Whether the mean's interval is above the best answer without training, if that is known."""
    best, gain = question.best_baseline, question.scale.gain
    if best is None:
        return True
    ends = (summary.mean,) if summary.low is None else (summary.low, summary.high)
    return min(map(gain, ends)) > gain(best[1])


def worst_case(found: Difference, scale: Scale) -> float:
    """The worse end of the simultaneous interval, as a gain."""
    return min(scale.gain(found.joint_low), scale.gain(found.joint_high))


def weights(summary: StrategySummary) -> float:
    """The number of trainable weights; infinite if unknown."""
    return float("inf") if summary.trainable is None else float(summary.trainable)


def describe_difference(label: str, found: Difference, question: Question) -> str:
    """A difference to the reference with its simultaneous interval and p-value."""
    scale, folds = question.scale, question.folds
    number = len(found.seeds)
    unit = scale.unit + " (less is better)" * scale.lower
    seeds = counted(number, "seed", "seeds") if folds is None else f"{number} of {folds} folds"
    return (
        f"{label} minus {question.reference}: {scale.describe(found.value)}{unit}, {SIMULTANEOUS} "
        f"{scale.describe(found.joint_low)} to {scale.describe(found.joint_high)}, "
        f"p = {found.p_corrected:.2g} (Holm), {seeds}, {found.rows:,} test rows."
    )


def price(question: Question, chosen: StrategySummary) -> str:
    """What the recommended strategy costs next to the reference, in the headline."""
    if chosen is question.base:
        return ""
    parts = [] if chosen.share is None else [f"{short_percent(chosen.share)} of the weights"]
    seconds = cost_ratio(question, chosen, "train_seconds")
    if seconds is not None:
        parts.append(share_of_time(seconds))
    return f", at {' and '.join(parts)}" if parts else ""


def short_percent(share: float) -> str:
    """A share in percent with two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def share_of_time(ratio: float) -> str:
    """A ratio of training times in plain words."""
    if 0.45 <= ratio <= 0.55:
        return "half the time"
    if ratio <= 1:
        return f"{short_percent(ratio)} of the time"
    return f"{ratio:.1f} times the time"


def cost_ratio(question: Question, chosen: StrategySummary, name: str) -> float | None:
    """A cost as a multiple of the reference's; None if unknown, or of other hardware."""
    own, base = chosen.measures[name], question.base.measures[name]
    if "hardware" in question.mixed or chosen is question.base:
        return None
    return own.median / base.median if own and base and base.median > 0 else None


def cost_of(question: Question, chosen: StrategySummary) -> list[str]:
    """The costs of the recommended strategy."""
    parts = []
    if chosen.trainable is not None and chosen.share is not None:
        parts.append(f"{chosen.trainable:,} trainable weights ({chosen.share:.2%} of all)")
    for name, words in {"train_seconds": "training time", "peak_bytes": "peak memory"}.items():
        ratio = cost_ratio(question, chosen, name)
        if ratio is not None:
            parts.append(f"{ratio:.2f} times the {words} of {question.reference}")
    size = chosen.measures["artifact_bytes"]
    if size:
        parts.append(f"{size.median / 2**20:.2f} MiB on disk")
    return [f"Cost of {chosen.label}: {', '.join(parts)}."] if parts else []


def mixed_warning(question: Question) -> list[str]:
    """A warning if the runs differ in more than their strategy."""
    if not question.mixed:
        return []
    facts = ", ".join(question.mixed)
    return [f"Warning: these runs differ in more than their strategy ({facts}), as was allowed."]


def baseline_warning(question: Question, chosen: StrategySummary) -> list[str]:
    """A warning if the strategy is not shown to beat the best answer without training."""
    best = question.best_baseline
    if best is None or beats_baseline(question, chosen):
        return []
    name, score = best
    what = f"always answering the {name}" if name == "majority class" else f"the baseline {name!r}"
    metric = question.metric
    return [f"Warning: {chosen.label} is not shown to beat {what} ({metric} {score:.4f})."]


def group_sentence(question: Question) -> list[str]:
    """Which strategies do not differ significantly."""
    compared = [each for each in question.scored if each.groups]
    if len(compared) < 2:
        return []
    if set.intersection(*[set(each.groups) for each in compared]):
        return [f"No two of the {len(compared)} strategies differ significantly."]
    return ["Strategies that share a group letter do not differ significantly."]


def failure_sentences(question: Question) -> list[str]:
    """Strategies some of whose runs failed."""
    partly = [each for each in question.scored if each.failures]
    return [
        f"{each.label} failed in {len(each.failures)} of {len(each.runs)} runs "
        f"({each.failures[0].status}): its mean is over the others, and it is not recommended."
        for each in partly
    ]


def limits(question: Question) -> list[str]:
    """What these seeds and rows cannot show."""
    seeds, found = question.seeds, []
    if question.folds is not None:
        found.append(
            f"{power(question)} Training sets of folds overlap: intervals and p-values correct for "
            "that by an approximation (Nadeau and Bengio 2003)."
        )
    elif seeds == 1:
        found.append(
            "One seed: intervals and p-values are for these trained weights on other test rows. "
            "They do not say what another seed would give."
        )
    elif seeds < ENOUGH_SEEDS:
        low, high = deviation_factors(seeds)
        found.append(
            f"{power(question)} {seeds} seeds say little about how much a strategy varies: the "
            f"true standard deviation is {low:.1f} to {high:.1f} times the one in the table "
            f"({INTERVAL})."
        )
    else:
        found.append(power(question))
    if question.rows < FEW_ROWS:
        found.append(
            f"{question.rows} test rows are few: intervals and p-values are rough, whatever the "
            "number of seeds."
        )
    return found


def power(question: Question) -> str:
    """The range of the minimum detectable differences."""
    scale = question.scale
    smallest = sorted(found.minimum_detectable for _, found in question.compared)
    low, high = (scale.describe(end, signed=False) for end in (smallest[0], smallest[-1]))
    ends = low if low == high else f"{low} to {high}"
    return (
        f"Minimum detectable difference to {question.reference} (80 % power, corrected): "
        f"{ends}{scale.unit}, depending on the strategy."
    )


def deviation_factors(seeds: int) -> tuple[float, float]:
    """The ends of a normal deviation's 95 % interval as multiples of the one found (chi-square)."""
    freedom = seeds - 1
    low, high = (sqrt(freedom / (2 * gammaincinv(freedom / 2, q))) for q in (0.975, 0.025))
    return low, high
