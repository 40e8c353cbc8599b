"""Translation: a text said in another language, by an encoder-decoder or a causal model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.metrics.text import CHRF, TextMetric, bleus
from peftkit.metrics.tokenizers import bleu_tokenizer, check_installed
from peftkit.tasks.base import EvalSplit
from peftkit.tasks.language_modeling.seq2seq import (
    SOURCE,
    Columns,
    Seq2Seq,
    as_answers,
    usual_target,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftkit.data.splits import Splits


class Translation(Seq2Seq):
    """Translation of a source text."""

    kind: Literal["translation"] = "translation"
    metric: str = "chrf"
    """The headline score."""
    into: str | None = None
    """What a causal model is asked for by name: the target's language, as German."""
    codes: tuple[str, str] | None = None
    """Codes of the source's and the target's language, where the tokenizer has them (mBART, NLLB:
    en_XX, de_DE). Marian's many-language models want theirs in `prompt`: '>>deu<< {source}'."""
    score_tokenizer: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] | None = (
        None
    )
    """How sacrebleu splits texts for BLEU; null: 13a, or what the script of the test references
    needs (zh, ja-mecab, ko-mecab; char for Thai and the like)."""

    metrics: ClassVar[tuple[str, ...]] = ("chrf", "bleu", "bits_per_byte")

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    @property
    def request(self) -> str:  # type: ignore[override]
        """What a causal model is asked."""
        return f"Translate this text{f' into {self.into}' if self.into else ''}: {SOURCE}"

    def text_metrics(self, references: Sequence[str] = ()) -> tuple[TextMetric, ...]:
        """chrF, and BLEU as texts of the references' script are split for it."""
        chosen = self.score_tokenizer
        return CHRF, bleus(chosen or bleu_tokenizer(references), chosen is not None)

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """As `Seq2Seq` has it. Raises `DataError` also where what splits the texts for BLEU is
        not installed."""
        names = super().label_names(splits)
        if self.generate is not None and len(splits.test):
            check_installed(self.score_tokenizer or bleu_tokenizer(splits.test["target"]))
        return names

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> Columns:
        """As `Seq2Seq` has it, in the languages that are named."""
        self._name_languages(tokenizer)
        return super().encode(rows, tokenizer, names, max_length)

    def prompts(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> list[list[int]]:
        """As `Seq2Seq` has it, in the languages that are named."""
        self._name_languages(tokenizer)
        return super().prompts(rows, tokenizer, max_length)

    def prompt_format(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
        """As `Seq2Seq` has it, with the languages that are named."""
        return {**super().prompt_format(tokenizer), "languages": self.codes}

    def first_id(self, tokenizer: "PreTrainedTokenizerBase") -> int | None:
        """The target language's code, which such models begin with."""
        if self.codes is None:
            return None
        self._name_languages(tokenizer)
        known: Any = tokenizer
        (found,) = known.convert_tokens_to_ids([self.codes[1]])
        return int(found)

    def _name_languages(self, tokenizer: Any) -> None:
        """Tell the tokenizer the languages.

        Raises `DataError` where it knows none, or not these.
        """
        if self.codes is None:
            return
        from peftkit.errors import DataError, Fault

        unknown = [
            c for c in self.codes if tokenizer.convert_tokens_to_ids(c) in no_token(tokenizer)
        ]
        if unknown or not hasattr(tokenizer, "src_lang"):
            code = unknown[0] if unknown else self.codes[0]
            what = f"the model's tokenizer has no language {code!r}"
            fault = Fault(
                "task.codes", f"{what} - leave codes out, or take them from its vocabulary"
            )
            raise DataError("the model does not suit the task:", [fault])
        tokenizer.src_lang, tokenizer.tgt_lang = self.codes

    def baseline_answers(self, given: EvalSplit) -> dict[str, list[dict[str, Any]]]:
        """The source as it is; always the same target."""
        sources = list(given.rows["source"])
        return {
            "source": as_answers(sources),
            "constant": as_answers([usual_target(given)] * len(sources)),
        }


def no_token(tokenizer: Any) -> tuple[int | None, ...]:
    """What a tokenizer answers for a token that it does not have."""
    return None, tokenizer.unk_token_id
