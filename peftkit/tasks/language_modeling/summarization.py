"""Summarization, with an encoder-decoder or a causal language model."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from peftkit.metrics.text import TextMetric, rouges
from peftkit.tasks.base import EvalSplit
from peftkit.tasks.language_modeling.seq2seq import SOURCE, Seq2Seq, as_answers, usual_target
from peftkit.text.words import SENTENCE_ENDS, split_words


class Summarization(Seq2Seq):
    """Summarization of a source text."""

    kind: Literal["summarization"] = "summarization"
    metric: str = "rougeL"
    """The headline score."""
    score_tokenizer: Literal["english", "unicode"] | None = None
    """How texts are split for ROUGE: english, words of a to z and 0 to 9, stemmed; unicode, those
    of any script, each character alone where no space divides words. null: english, but unicode
    for references of other letters than a to z."""

    metrics: ClassVar[tuple[str, ...]] = ("rougeL", "rouge1", "rouge2", "bits_per_byte")
    request: ClassVar[str] = f"Summarize this text:\n\n{SOURCE}"

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    def text_metrics(self, references: Sequence[str] = ()) -> tuple[TextMetric, ...]:
        """ROUGE."""
        return (rouges(self.score_tokenizer),)

    def baseline_answers(self, given: EvalSplit) -> dict[str, list[dict[str, Any]]]:
        """The first three turns or sentences, the longest three, always the same target."""
        parts = [parts_of(source) for source in given.rows["source"]]
        return {
            "first_three": as_answers([" ".join(each[:3]) for each in parts]),
            "longest_three": as_answers([" ".join(longest(each, 3)) for each in parts]),
            "constant": as_answers([usual_target(given)] * len(parts)),
        }


def parts_of(text: str) -> list[str]:
    """The lines of a text (the turns of a dialogue); its sentences where it is one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if len(lines) > 1 else SENTENCE_ENDS.split(text.strip())


def longest(parts: Sequence[str], count: int) -> list[str]:
    """The longest parts, in the order in which they stand."""
    chosen = sorted(range(len(parts)), key=lambda i: (-len(split_words(parts[i])), i))[:count]
    return [parts[i] for i in sorted(chosen)]
