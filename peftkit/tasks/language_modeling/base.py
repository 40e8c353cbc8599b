"""Base class of tasks whose predictions are generated texts.

A task defines how rows become prompts and references, and the metrics of its texts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.metrics.text import TextMetric, counts_of, means, pass_counts, pass_names, totals_of
from peftkit.tasks.base import EvalSplit, Predictions, Reading, Scored, Task
from peftkit.tasks.language_modeling.counts import columns_in, row_counts, token_totals
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.text.conversations import Conversation
from peftkit.text.words import split_words

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from peftkit.metrics.counts import Totals
    from peftkit.metrics.registry import Score

    Floats = NDArray[np.float64]

TOKEN_KINDS = 3
"""Counts of a row that are known without generating: nats, tokens, bytes."""
Answers = list[dict[str, Any]]


class LanguageModeling(Task):
    """Loss on target tokens, bits per byte of their text, and scores of generated texts."""

    generate: Generation | None = None
    """Generate and score texts at the end of a run; null: only losses are scored."""

    peft_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    trains_head: ClassVar[bool] = False
    reading: ClassVar[Reading] = "labels"
    placeholder_names: ClassVar[tuple[str, ...]] = ()
    added_settings: ClassVar[tuple[str, ...]] = ("generate.few_shot_examples", "score_tokenizer")

    @property
    def headline(self) -> str:
        """Bits per byte: fair between tokenizers, and less is better."""
        return "bits_per_byte"

    @property
    def validation_metric(self) -> str:
        """Bits per byte: nothing is generated while a run trains."""
        return "bits_per_byte"

    @property
    def has_untrained_baseline(self) -> bool:
        """The base answers as the trained model does."""
        return True

    @property
    def text_generator(self) -> "LanguageModeling":
        """This task."""
        return self

    @property
    def generation(self) -> Generation | None:
        """The settings in `generate`."""
        return self.generate

    def text_metrics(self, references: Sequence[str] = ()) -> tuple[TextMetric, ...]:
        """The kinds of scores that generated texts get beside such references."""
        return ()

    def prompts(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> list[list[int]]:
        """The tokens from which each row's text is generated."""
        raise NotImplementedError

    def conversations(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: Any, max_length: int
    ) -> list[Conversation]:
        """Each row as a question and its answer, or several of both, within `max_length`."""
        raise NotImplementedError

    def references(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The text that should be generated for each row."""
        raise NotImplementedError

    def prompt_format(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
        """How a text becomes what the model reads, for code that has no peftkit: the `kind` of
        prompt that `exporting/generate.py` makes, and what it must know of it."""
        raise NotImplementedError

    def prompt_inputs(self, rows: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        """What each row is for such code: a text, or a conversation."""
        raise NotImplementedError

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The tokens that end an answer, beside those that the model names."""
        return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def chat_template(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """The chat template in force, as `apply_chat_template` renders it; None where rows are no
        conversations."""
        return None

    def first_id(self, tokenizer: "PreTrainedTokenizerBase") -> int | None:
        """The token that a decoder must begin with, where the task knows it."""
        return None

    def prompt_rows(self, rows: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """What of the test rows is given to the model, for the rest to be generated."""
        return rows

    def peft_type_of(self, model: "PreTrainedModel") -> str:
        """PEFT's name for the task on this model."""
        return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"

    def configuration(self, names: Sequence[str]) -> dict[str, Any]:
        """Nothing: there are no labels."""
        return {}

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """The causal language models."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def loss(
        self, logits: "torch.Tensor", labels: "torch.Tensor", smoothing: float
    ) -> "torch.Tensor":
        """The sum of the cross-entropies of the tokens to be said."""
        from peftkit.models.chunked_loss import summed_loss

        return summed_loss(logits, labels, smoothing)

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor", sizes: Sequence[int]
    ) -> "list[np.ndarray]":
        """Of each example the mean loss of a token, in nats, and the number of tokens: (2,)."""
        import numpy as np

        from peftkit.models.chunked_loss import token_losses

        parts = token_losses(logits, labels).split(list(sizes))
        return [
            np.asarray([float(part.mean()) if len(part) else 0.0, len(part)], dtype=np.float32)
            for part in parts
        ]

    def answers(self, predictions: Predictions, given: EvalSplit) -> Answers:
        """What was generated for each row, where it was, how many of its samples `passed` a judge,
        and what the right answer cost: `nats` over `tokens` that stand for `bytes` of text."""
        counts = row_counts(predictions, given)
        texts = predictions.texts or [None] * len(counts)
        passed = predictions.passed or [None] * len(counts)
        return [
            {
                **({} if text is None else {"generated": text}),
                **({} if hits is None else {"passed": hits}),
                **({} if not tokens else {"nats": nats, "tokens": tokens, "bytes": size}),
            }
            for text, hits, (nats, tokens, size) in zip(texts, passed, counts, strict=True)
        ]

    def counts(self, answers: Sequence[Mapping[str, Any]], given: EvalSplit) -> "Floats":
        """Nats, tokens and bytes of each row, then what its text gives, then what the judge says of
        its samples; NaN where it has none."""
        import numpy as np

        known = np.asarray(
            [[said.get(key, math.nan) for key in ("nats", "tokens", "bytes")] for said in answers]
        ).reshape(len(answers), TOKEN_KINDS)
        texts = [said.get("generated") for said in answers]
        if all(text is None for text in texts):
            return known
        right = self._references_of(given)
        kinds, samples = self.text_metrics(right), self._graded_samples()
        if not (kinds or samples):
            return known
        unknown = [math.nan] * sum(kind.width for kind in kinds)
        judged = [
            unknown if text is None else counts_of(kinds, text, wanted)
            for text, wanted in zip(texts, right, strict=True)
        ]
        passes = [pass_counts(said.get("passed"), samples) for said in answers] if samples else []
        behind = [np.asarray(part) for part in (judged, passes) if len(part) and len(part[0])]
        return np.concatenate([known, *behind], axis=1)

    def totals(self, sums: "Floats", names: Sequence[str]) -> "dict[str, Floats]":
        """Loss, perplexity and bits per byte; behind them the scores of texts, if there are any."""
        return {k: v for part, totals in self.parts(sums, names) for k, v in totals(part).items()}

    def parts(self, counts: "Floats", names: Sequence[str]) -> "list[tuple[Floats, Totals]]":
        """What is known of every row, what only of those whose text was generated, and what only of
        those whose samples were judged."""
        kinds, samples = self.text_metrics(), self._graded_samples()
        texts, end = TOKEN_KINDS + sum(kind.width for kind in kinds), counts.shape[1]
        found: list[tuple[Floats, Totals]] = [(counts[:, :TOKEN_KINDS], token_totals)]
        if min(texts, end) > TOKEN_KINDS:
            found.append((counts[:, TOKEN_KINDS:texts], lambda sums: totals_of(kinds, sums)))
        if texts < end:
            found.append((counts[:, texts:], means(pass_names(samples))))
        return found

    def _references_of(self, given: EvalSplit) -> list[str]:
        """The references of all rows, of which the way to split texts is chosen."""
        return self.references({name: given.rows[name][:] for name in columns_in(given.rows)})

    def _graded_samples(self) -> int:
        """Samples a row that the judge's command is run on; 0 where there is no judge."""
        return self.generate.samples if self.generate and self.generate.grader else 0

    def score(self, predictions: Predictions, given: EvalSplit) -> Scored:
        """Scores over all rows, those of texts over the rows whose text was generated."""
        counts = self.counts(self.answers(predictions, given), given)
        scores = self._tallied(counts, given)
        details: dict[str, Any] = {}
        notes: list[str] = []
        texts = [index for index, text in enumerate(predictions.texts) if text is not None]
        if texts:
            details["generated_rows"] = len(texts)
            right = self._references_of(given)
            kinds = self.text_metrics(right)
            details["signatures"] = {
                k: v for kind in kinds for k, v in kind.signatures(right).items()
            }
            notes = [note for kind in kinds for note in kind.notes(right)]
            details |= self.text_details([str(predictions.texts[i]) for i in texts])
        simple = {}
        if given.train is not None and texts:
            for name, answers in self.baseline_answers(given).items():
                simple[name] = self._tallied(self.counts(answers, given)[texts], given)
        return Scored(scores, next(iter(simple.values()), {}), details, simple, tuple(notes))

    def text_details(self, texts: Sequence[str]) -> dict[str, Any]:
        """What else is said of generated texts."""
        return {"mean_words": sum(len(split_words(text)) for text in texts) / len(texts)}

    def _tallied(self, counts: "Floats", given: EvalSplit) -> "dict[str, Score]":
        """Each score from the rows in which it is known, the headline first."""
        import numpy as np

        from peftkit.metrics.counts import tally_scores

        found: dict[str, Score] = {}
        for part, totals in self.parts(counts, given.names):
            known = part[~np.isnan(part).any(axis=1)]
            if len(known):
                first = next(iter(totals(known[:1])))
                found |= tally_scores(known, totals, first, given.resamples)
        head = {name: found[name] for name in (self.headline,) if name in found}
        return head | found

    def prediction_lines(
        self, predictions: Predictions, given: EvalSplit
    ) -> Iterator[dict[str, Any]]:
        """What was generated, and the counts; null where a row has none. Never the source."""
        answers = self.answers(predictions, given)
        for answer, counts in zip(answers, self.counts(answers, given), strict=True):
            said = {"generated": answer["generated"]} if "generated" in answer else {}
            numbers = [None if math.isnan(n) else round(float(n), 6) for n in counts]
            yield {**said, "counts": numbers}

    def row_values(
        self, metric: str, columns: Mapping[str, Any], names: Sequence[str]
    ) -> "Floats | None":
        """What each row gives to `metric`; None where it is not known of every row."""
        import numpy as np

        from peftkit.metrics.counts import pseudo_values

        for part, totals in self.parts(np.asarray(columns["counts"], dtype=float), names):
            if metric in totals(part[:1]):
                return None if np.isnan(part).any() else pseudo_values(part, totals, metric)
        return None
