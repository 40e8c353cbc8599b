"""Verdict: what to ship, at what cost and how sure, in words that the numbers carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from scipy.special import gammaincinv

from peftkit.reporting.analysis.differences import LEVEL
from peftkit.reporting.analysis.records import counted
from peftkit.reporting.analysis.scales import Scale
from peftkit.reporting.analysis.summaries import Difference, Standing

ENOUGH_SEEDS = 5
FEW_ROWS = 100
"""Below these, intervals that rest on sums of many rows are rough."""


@dataclass(frozen=True)
class Question:
    """What a verdict is about."""

    standings: Sequence[Standing]
    reference: str
    metric: str
    margin: float
    rows: int
    baselines: Mapping[str, float | None]
    """The scores on the same rows of answers without training, by what they are called."""
    mixed: tuple[str, ...] = ()
    """Facts in which the runs differ, where that was allowed."""
    folds: int | None = None
    """Those of a cross-validation; None where runs differ by their seeds."""

    @property
    def scale(self) -> Scale:
        """Which way the metric is better, and how its differences are told."""
        return Scale(self.metric)

    @property
    def scored(self) -> list[Standing]:
        """Strategies that have a mean."""
        return [each for each in self.standings if each.mean is not None]

    @property
    def compared(self) -> list[tuple[Standing, Difference]]:
        """Strategies with their difference to the reference."""
        return [(each, each.difference) for each in self.scored if each.difference is not None]

    @property
    def base(self) -> Standing:
        """The reference's row."""
        return next(each for each in self.standings if each.label == self.reference)

    @property
    def seeds(self) -> int:
        """The fewest seeds, or folds, that a comparison rests on."""
        return min((len(found.seeds) for _, found in self.compared), default=0)


def verdict(question: Question) -> list[str]:
    """Sentences, the answer first."""
    scored = question.scored
    if not scored:
        return ["Nothing to ship: no run has a score."]
    if len(scored) == 1:
        [only] = scored
        told = f"Only {only.label} has a score ({only.mean:.4f}): there is nothing to compare with."
        return [told, *of_baseline(question, only)]
    if not question.compared:
        lack = "a seed and predictions of the same test rows" if question.folds is None else "folds"
        return [f"No verdict: no two strategies share {lack}, so their scores are no comparison."]
    chosen, why = choice(question)
    return [
        f"Ship {chosen.label}: {why}",
        *of_mixture(question),
        *cost_of(question, chosen),
        *of_baseline(question, chosen),
        *of_groups(question),
        *of_failures(question),
        *of_limits(question),
    ]


def choice(question: Question) -> tuple[Standing, str]:
    """The strategy to ship and why: the cheapest of those shown to beat the reference; else the
    cheapest of those shown to be at most the margin below it; else the reference."""
    scale = question.scale
    allowed = scale.allowed(question.margin, question.base.mean)
    shortly = scale.margin_told(question.margin, question.reference)
    sound = [(each, d) for each, d in question.compared if not each.failures]
    winners = [(e, d) for e, d in sound if d.p_corrected < LEVEL and scale.gain(d.value) > 0]
    near = [
        (each, d)
        for each, d in sound
        if at_worst(d, scale) > -allowed and cheapness((each, d)) < weight(question.base)
    ]
    if winners or near:
        chosen, found = min(winners or near, key=cheapness)
        shown = f"better than {question.reference}" if winners else shortly
        return chosen, f"it is {shown} ({told(found, question)})."
    best, nearest = max(question.compared, key=lambda each: at_worst(each[1], scale))
    return question.base, (
        "nothing else is shown to be better, nor anything cheaper to be "
        f"{scale.margin_told(question.margin, 'it')}. Nearest is {best.label} "
        f"({told(nearest, question)})."
    )


def at_worst(found: Difference, scale: Scale) -> float:
    """The end of the joint interval that is the worse one, more being better."""
    return min(scale.gain(found.joint_low), scale.gain(found.joint_high))


def weight(standing: Standing) -> float:
    """Trainable parameters; unknown counts as the most."""
    return float("inf") if standing.trainable is None else float(standing.trainable)


def cheapness(found: tuple[Standing, Difference]) -> float:
    """Trainable parameters of a compared strategy."""
    return weight(found[0])


def told(found: Difference, question: Question) -> str:
    """A difference with the interval that holds jointly, and its p."""
    scale, folds = question.scale, question.folds
    ends = f"{scale.told(found.joint_low)} to {scale.told(found.joint_high)}"
    number, unit = len(found.seeds), scale.unit
    if scale.lower:
        unit = f" in {question.metric}, of which less is better"
    seeds = counted(number, "seed", "seeds") if folds is None else f"{number} of {folds} folds"
    return (
        f"{scale.told(found.value)}{unit}, {ends} with 95 % certainty for all comparisons at once, "
        f"p = {found.p_corrected:.2g} after Holm, {seeds}, {found.rows:,} test rows"
    )


def cost_of(question: Question, chosen: Standing) -> list[str]:
    """What the choice costs, beside the reference."""
    parts = []
    if chosen.trainable is not None and chosen.share is not None:
        parts.append(f"it trains {chosen.trainable:,} weights ({chosen.share:.2%} of all)")
    names = {"train_seconds": "training time", "peak_bytes": "peak memory"}
    for name, words in names.items():
        own, base = chosen.measures[name], question.base.measures[name]
        if "hardware" in question.mixed or chosen is question.base:
            continue
        if own and base and base.median > 0:
            parts.append(f"{own.median / base.median:.2f} times {question.reference}'s {words}")
    size = chosen.measures["artifact_bytes"]
    if size:
        parts.append(f"{size.median / 2**20:.2f} MiB on disk")
    return [f"The cost: {', '.join(parts)}."] if parts else []


def of_mixture(question: Question) -> list[str]:
    """A warning where runs that do not belong together stand in one table."""
    if not question.mixed:
        return []
    what = ", ".join(question.mixed)
    return [f"Beware: these runs differ in more than their strategy ({what}), as was allowed."]


def of_baseline(question: Question, chosen: Standing) -> list[str]:
    """A warning where the choice is not shown to beat the best answer without training."""
    known = {name: value for name, value in question.baselines.items() if value is not None}
    if not known or chosen.mean is None:
        return []
    gain, metric = question.scale.gain, question.metric
    name, best = max(known.items(), key=lambda pair: gain(pair[1]))
    ends = (chosen.low, chosen.high) if chosen.low is not None else (chosen.mean,)
    if min(map(gain, ends)) > gain(best):
        return []
    what = f"always answering the {name}" if name == "majority class" else f"the baseline {name!r}"
    return [f"Beware: {chosen.label} is not shown to beat {what} ({metric} {best:.4f})."]


def of_groups(question: Question) -> list[str]:
    """What can't be told apart."""
    compared = [each for each in question.scored if each.groups]
    if len(compared) < 2:
        return []
    if set.intersection(*[set(each.groups) for each in compared]):
        return [f"No two of the {len(compared)} strategies can be told apart."]
    return ["Strategies that share a group's letter cannot be told apart."]


def of_failures(question: Question) -> list[str]:
    """Strategies whose mean is over the seeds that survived."""
    partly = [each for each in question.scored if each.failures]
    return [
        f"{each.label} failed in {len(each.failures)} of {len(each.runs)} runs "
        f"({each.failures[0].status}): its mean is over those that did not, and it is not shipped."
        for each in partly
    ]


def of_limits(question: Question) -> list[str]:
    """What so few seeds and rows cannot show."""
    said, scale = [], question.scale
    smallest = sorted(found.detectable for _, found in question.compared)
    low_end, high_end = (scale.told(end, signed=False) for end in (smallest[0], smallest[-1]))
    shown = (
        f"a true difference to {question.reference} below {low_end} to {high_end}{scale.unit}, "
        "depending on the strategy (from there on 80 % are found)"
    )
    seeds = question.seeds
    if question.folds is not None:
        said.append(
            f"These folds cannot show {shown}. Folds share most of the rows that they learn from: "
            "intervals and p-values allow for that by a rule of thumb (Nadeau and Bengio's)."
        )
    elif seeds == 1:
        said.append(
            "One seed: intervals and p-values are about these very weights on other test rows. "
            "Whether another seed would give the same answer cannot be shown."
        )
    elif seeds < ENOUGH_SEEDS:
        low, high = deviation_factors(seeds)
        said.append(
            f"With {seeds} seeds it cannot be shown: {shown}; an order within a group; how much a "
            f"strategy varies over seeds (the true deviation is {low:.1f} to {high:.1f} times the "
            "one in the table)."
        )
    else:
        said.append(f"These seeds and rows cannot show {shown}.")
    if question.rows < FEW_ROWS:
        said.append(
            f"{question.rows} test rows are few: intervals and p-values are rough, whatever the "
            "number of seeds."
        )
    return said


def deviation_factors(seeds: int) -> tuple[float, float]:
    """The ends of a normal deviation's 95 % interval as multiples of the one found (chi-square)."""
    freedom = seeds - 1
    low, high = (sqrt(freedom / (2 * gammaincinv(freedom / 2, q))) for q in (0.975, 0.025))
    return low, high
