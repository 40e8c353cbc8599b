"""Sequence-to-sequence tasks: a source text to a target, with an encoder-decoder or a causal LM."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt, field_validator

from peftkit.errors import DataError, Fault, RecipeError
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.text.chat_templates import ChatTemplate, read_template
from peftkit.text.chat_tokens import tokenize_chats
from peftkit.text.conversations import Conversation, assistant_message, user_message
from peftkit.text.special_tokens import encode_rendered, encode_text, escape_special_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits
    from peftkit.data.validation import Need
    from peftkit.tasks.base import EvalSplit

SOURCE = "{source}"
Columns = dict[str, list[Any]]


class Seq2Seq(LanguageModeling):
    """A target text from a source text: the base class of translation and summarization."""

    generate: Generation | None = Generation()
    """Generate and score texts at the end of a run; null: only losses are scored."""
    prompt: str | None = None
    """What the model reads, with {source} in the place of the text; null: the source alone where
    there is an encoder (T5 wants its prefix here, as 'summarize: {source}'), else a request."""
    template: str | None = None
    """For causal models: a chat template (a Jinja file or its text) in place of the tokenizer's
    own; plain: Q: ... A: ..., for base models."""
    target_length: PositiveInt = 128
    """Tokens a target is cut to. A causal model reads `data.max_length` less these."""

    roles: ClassVar["Mapping[str, Need]"] = {"source": True, "target": True}
    inputs: ClassVar[tuple[str, ...]] = ("source",)
    request: ClassVar[str] = SOURCE
    """What a causal model is asked where the recipe does not say."""

    @field_validator("prompt")
    @classmethod
    def _has_a_place_for_the_source(cls, said: str | None) -> str | None:
        if said is not None and SOURCE not in said:
            raise ValueError(f"has no {SOURCE} (got {said!r}) - put it where the text belongs")
        return said

    @field_validator("template")
    @classmethod
    def _files_are_read(cls, said: str | None) -> str | None:
        return None if said is None else read_template(said)

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """Encoder-decoders, or the causal language models.

        Raises `RecipeError` where an encoder would have to read answered rows.
        """
        if config is not None and config.is_encoder_decoder:
            if self.generate is not None and self.generate.few_shot_examples:
                what = f"{config.model_type} has an encoder, which reads no answered rows"
                fault = Fault("task.generate.few_shot_examples", f"{what} - leave it out")
                raise RecipeError("the model does not suit the task:", [fault])
            from transformers import AutoModelForSeq2SeqLM

            return AutoModelForSeq2SeqLM
        return super().auto_class(config)

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """None: targets are text. Raises `DataError` for a score that nothing is generated for."""
        if self.headline != "bits_per_byte" and self.generate is None:
            what = f"{self.headline} is a score of generated texts, and none are asked for"
            fault = Fault("task.generate", f"{what} - drop it, or set task.metric=bits_per_byte")
            raise DataError("the texts cannot be scored:", [fault])
        return ()

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> Columns:
        """The source (an encoder's) or source and target (a causal model's) as tokens, the target's
        as labels; both cut, each to its own length."""
        if getattr(tokenizer, "feeds_encoder", False):
            return self._apart(rows, tokenizer, max_length)
        template = ChatTemplate(tokenizer, self.template)
        asked, cut = self._requests(rows["source"], template, tokenizer, max_length)
        texts = []
        for request, target in zip(asked, rows["target"], strict=True):
            (text,) = template.render_answers(
                Conversation([user_message(request), assistant_message(target)])
            )
            texts.append(text)
        found = tokenize_chats(texts, template, max_length)
        return {
            "input_ids": [each.input_ids for each in found],
            "labels": [each.labels for each in found],
            "bytes": [each.num_bytes for each in found],
            "truncated": [a or b.truncated for a, b in zip(cut, found, strict=True)],
        }

    def prompts(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> list[list[int]]:
        """What an encoder reads, or a causal model up to where its answer begins."""
        if getattr(tokenizer, "feeds_encoder", False):
            return self._sources(rows["source"], tokenizer, max_length)[0]
        template = ChatTemplate(tokenizer, self.template)
        asked, _ = self._requests(rows["source"], template, tokenizer, max_length)
        texts = [
            template.render(Conversation([user_message(request)]), asks=True) for request in asked
        ]
        found = encode_rendered(tokenizer, texts, add_special_tokens=False)
        return list(map(list, found["input_ids"]))

    def conversations(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: Any, max_length: int
    ) -> list[Conversation]:
        """What a causal model is asked of each source, cut to leave room, and the target."""
        template = ChatTemplate(tokenizer, self.template)
        requests, _ = self._requests(rows["source"], template, tokenizer, max_length)
        pairs = zip(requests, rows["target"], strict=True)
        return [
            Conversation([user_message(request), assistant_message(target)])
            for request, target in pairs
        ]

    def references(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The targets."""
        return list(rows["target"])

    def prompt_format(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
        """What an encoder reads, or what a causal model is asked, around a source."""
        if getattr(tokenizer, "feeds_encoder", False):
            return {"kind": "source", "prompt": self.prompt or SOURCE, "languages": None}
        said = self.prompt or self.request
        return {"kind": "question", "prompt": said, "target_length": self.target_length}

    def prompt_inputs(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The sources."""
        return list(rows["source"])

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The tokens that end a target."""
        if getattr(tokenizer, "feeds_encoder", False):
            return super().stop_ids(tokenizer)
        return ChatTemplate(tokenizer, self.template).stop_ids()

    def chat_template(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """The one that a causal model's requests are written by; none where there is an encoder."""
        if getattr(tokenizer, "feeds_encoder", False):
            return None
        return ChatTemplate(tokenizer, self.template).portable_text

    def _apart(self, rows: Mapping[str, Sequence[Any]], tokenizer: Any, max_length: int) -> Columns:
        """For an encoder and its decoder."""
        ids, cut = self._sources(rows["source"], tokenizer, max_length)
        targets = list(rows["target"])
        whole = encode_text(tokenizer, text_target=targets, verbose=False)["input_ids"]
        cutting = {"truncation": True, "max_length": self.target_length}
        labels = encode_text(tokenizer, text_target=targets, **cutting)["input_ids"]
        sizes = [
            len(text.encode()) if len(all_of_it) == len(kept) else size_of_cut(kept, tokenizer)
            for text, all_of_it, kept in zip(targets, whole, labels, strict=True)
        ]
        short = [len(a) > len(b) for a, b in zip(whole, labels, strict=True)]
        return {
            "input_ids": ids,
            "labels": [list(each) for each in labels],
            "bytes": sizes,
            "truncated": [a or b for a, b in zip(cut, short, strict=True)],
        }

    def _sources(
        self, sources: Sequence[str], tokenizer: Any, max_length: int
    ) -> tuple[list[list[int]], list[bool]]:
        """What an encoder reads, and whether it was cut."""
        prompt = self.prompt or SOURCE
        texts = [
            prompt.replace(SOURCE, escape_special_tokens(tokenizer, source)) for source in sources
        ]
        whole = encode_rendered(tokenizer, texts, verbose=False)["input_ids"]
        cutting = {"truncation": True, "max_length": max_length}
        kept = encode_rendered(tokenizer, texts, **cutting)["input_ids"]
        cut = [len(a) > len(b) for a, b in zip(whole, kept, strict=True)]
        return [list(ids) for ids in kept], cut

    def _requests(
        self, sources: Sequence[str], template: ChatTemplate, tokenizer: Any, max_length: int
    ) -> tuple[list[str], list[bool]]:
        """What a causal model is asked, the source cut from behind so that a target fits; and
        whether it was."""
        said = self.prompt or self.request
        around = template.render(Conversation([user_message(said.replace(SOURCE, ""))]), asks=True)
        room = (
            max_length
            - self.target_length
            - len(tokenizer(around, add_special_tokens=False)["input_ids"])
        )
        if room < 1:
            what = (
                f"{max_length} tokens leave no source room next to targets of {self.target_length}"
            )
            fault = Fault("data.max_length", f"{what} - raise it, or lower task.target_length")
            raise DataError("the texts do not fit:", [fault])
        how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        found = encode_text(tokenizer, sources, **how)["offset_mapping"]
        cut = [len(offsets) > room for offsets in found]
        texts = [
            source[: offsets[room - 1][1]] if short else source
            for source, offsets, short in zip(sources, found, cut, strict=True)
        ]
        return [said.replace(SOURCE, text) for text in texts], cut


def size_of_cut(ids: Sequence[int], tokenizer: Any) -> int:
    """Bytes of the text that is left of a target."""
    return len(tokenizer.decode(ids, skip_special_tokens=True).encode())


def usual_target(given: "EvalSplit") -> str:
    """The most frequent target of the train split; of several, one of middling length."""
    counts: Counter[str] = Counter(given.train["target"])
    most = max(counts.values())
    often = sorted((t for t, n in counts.items() if n == most), key=lambda t: (len(t), t))
    return often[len(often) // 2]


def as_answers(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Texts as answers."""
    return [{"generated": text} for text in texts]
