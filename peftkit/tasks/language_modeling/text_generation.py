"""Text generation: causal language modeling of plain texts, optionally led by attributes."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from peftkit.errors import DataError, Fault
from peftkit.metrics.text import distinct
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.text.special_tokens import encode_text
from peftkit.text.words import take_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftkit.data.splits import Splits
    from peftkit.data.validation import Need


class TextGeneration(LanguageModeling):
    """Causal language modeling of texts: each token from those before it, and the end token."""

    kind: Literal["text_generation"] = "text_generation"
    attributes: list[str] = Field(default_factory=list)
    """Values of the column `attribute`; each text is led by its own as a token, <|value|>."""
    prompt_words: PositiveInt = 8
    """Words at the start of a test text from which the rest is generated (`generate`); characters,
    where no space divides words."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"language_modeling": {}}
    roles: ClassVar["Mapping[str, Need]"] = {"text": True, "attribute": False}
    inputs: ClassVar[tuple[str, ...]] = ("text", "attribute")

    @field_validator("generate")
    @classmethod
    def _has_no_questions(cls, said: Generation | None) -> Generation | None:
        if said is not None and said.few_shot_examples:
            raise ValueError(
                f"few_shot_examples: texts answer no questions (got {said.few_shot_examples}) - "
                "leave it out"
            )
        return said

    def used_roles(self, there: Collection[str]) -> Collection[str]:
        """Attributes only where they are named."""
        return [role for role in there if self.attributes or role != "attribute"]

    def markers(self) -> tuple[str, ...]:
        """A token for each attribute."""
        return tuple(map(marker, self.attributes))

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """None. Raises `DataError` for attributes that are not named, or named and never there."""
        faults = []
        for split in ("train", "validation", "test"):
            rows = getattr(splits, split)
            if "attribute" not in rows.column_names or not self.attributes:
                continue
            for value in sorted({str(v) for v in rows["attribute"]} - set(self.attributes)):
                what = f"{value!r} is not among task.attributes ({', '.join(self.attributes)})"
                faults.append(Fault(f"{split}, column of 'attribute'", f"{what} - name it there"))
        if self.attributes and "attribute" not in splits.train.column_names:
            what = "names values of a column that is not there - set data.columns.attribute"
            faults.append(Fault("task.attributes", what))
        if faults:
            raise DataError("the attributes cannot be used:", faults)
        return ()

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """Each text behind its beginning token, and the token that ends it."""
        texts = list(rows["text"])
        how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        found = encode_text(tokenizer, texts, **how)
        leads, end = self._leads(rows, tokenizer), tokenizer.eos_token_id
        whole = [
            [*lead, *ids, *([] if end is None else [end])]
            for lead, ids in zip(leads, found["input_ids"], strict=True)
        ]
        sizes = []
        for text, lead, offsets in zip(texts, leads, found["offset_mapping"], strict=True):
            kept = min(len(offsets), max(0, max_length - len(lead)))
            stop = len(text) if kept == len(offsets) else offsets[kept - 1][1] if kept else 0
            sizes.append(len(text[:stop].encode("utf-8", "surrogatepass")))
        return {
            "input_ids": [ids[:max_length] for ids in whole],
            "labels": [
                [*[-100] * len(lead), *ids[len(lead) :]][:max_length]
                for lead, ids in zip(leads, whole, strict=True)
            ],
            "bytes": sizes,
            "truncated": [len(ids) > max_length for ids in whole],
        }

    def prompt_rows(self, rows: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """The first words of each text, and the white space between them as it is: code lives by
        it."""
        return {**rows, "text": [take_words(text, self.prompt_words) for text in rows["text"]]}

    def references(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The whole texts."""
        return list(rows["text"])

    def prompts(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> list[list[int]]:
        """Each text as it is, behind its beginning; the end of one that is too long."""
        how = {"add_special_tokens": False, "verbose": False}
        ids = encode_text(tokenizer, rows["text"], **how)["input_ids"]
        leads = self._leads(rows, tokenizer)
        return [
            [*lead, *each[-max(1, max_length - len(lead)) :]]
            for lead, each in zip(leads, ids, strict=True)
        ]

    def prompt_format(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
        """A text to go on from, which may begin with an attribute's token."""
        (begins,) = self._leads({"text": [""]}, tokenizer)
        return {"kind": "opening", "begins": begins, "leads": list(self.markers())}

    def prompt_inputs(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The texts, each behind its attribute's token."""
        count = len(rows["text"])
        said = rows.get("attribute", [None] * count) if self.attributes else [None] * count
        leads = ["" if value is None else marker(str(value)) for value in said]
        return [lead + text for lead, text in zip(leads, rows["text"], strict=True)]

    def text_details(self, texts: Sequence[str]) -> dict[str, Any]:
        """Also how varied the texts are."""
        varied = {f"distinct_{order}": distinct(texts, order) for order in (1, 2, 3)}
        return {**super().text_details(texts), **varied}

    def _leads(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[list[int]]:
        """What each text begins with: the tokenizer's beginning (or end, where it has none: the
        first token too must be told from something) and the attribute."""
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        start = [] if first is None else [int(first)]
        count = len(rows["text"])
        said = rows.get("attribute", [None] * count) if self.attributes else [None] * count
        names = [[] if value is None else [marker(str(value))] for value in said]
        known: Any = tokenizer
        return [[*start, *known.convert_tokens_to_ids(markers)] for markers in names]


def marker(value: str) -> str:
    """The token of an attribute."""
    return f"<|{value}|>"
