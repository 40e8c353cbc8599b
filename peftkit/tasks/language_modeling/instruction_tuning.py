"""Instruction tuning: a causal language model learns the assistant's turns of conversations."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from peftkit.errors import DataError, Fault, RecipeError
from peftkit.metrics.text import EXACT, TextMetric, exact_counts, rouges
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.counts import columns_in
from peftkit.text.chat_fields import REQUIRED_FIELDS, check_fields, row_faults
from peftkit.text.chat_templates import ChatTemplate, RenderedChat, read_template
from peftkit.text.chat_tokens import TokenizedChat, extract_answer, tokenize_chats
from peftkit.text.conversations import (
    COLUMNS,
    FORMATS,
    MESSAGE_COLUMNS,
    Conversation,
    detect_format,
    find_fault,
    remove_last_answer,
    to_conversation,
    trim_to_last_answer,
    trim_unanswered,
)
from peftkit.text.messages import MessageError, message_text
from peftkit.text.special_tokens import encode_rendered

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data.splits import Splits
    from peftkit.data.validation import Need
    from peftkit.tasks.base import EvalSplit

SPLITS = ("train", "validation", "test")
UNUSABLE = "the conversations cannot be used:"
Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer"]


class InstructionTuning(LanguageModeling):
    """Instruction tuning on conversations: the loss is on the assistant's turns."""

    kind: Literal["instruction_tuning"] = "instruction_tuning"
    format: Format = "auto"
    """How rows hold conversations; auto: told by their columns. messages: a list of {role,
    content}; sharegpt: conversations of {from, value}; alpaca: instruction, input, output; prompt
    and completion; question and answer. Messages may have `tool_calls`, `reasoning_content` and
    what else the chat template shows (a column `tools` too), and `weight: 0` or `train: false`
    where an answer is read but not learned."""
    template: str | None = None
    """Chat template: a Jinja file or its text, in place of the tokenizer's own; plain: Q: ... A:
    ..., for base models. Part of the run's name by its content."""
    system: str | None = None
    """System prompt of conversations that have none."""
    metric: str = "bits_per_byte"
    """The headline score; of generated texts only where `generate` is set."""
    score_tokenizer: Literal["english", "unicode"] | None = None
    """How texts are split for ROUGE: english, words of a to z and 0 to 9, stemmed; unicode, those
    of any script, each character alone where no space divides words. null: english, but unicode
    for references of other letters than a to z."""

    is_conversation: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = (
        "bits_per_byte", "exact_match", "rougeL", "perplexity", "loss",
    )  # fmt: skip
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"chat": {}}
    roles: ClassVar["Mapping[str, Need]"] = dict.fromkeys(COLUMNS, False)
    inputs: ClassVar[tuple[str, ...]] = (
        "prompt", "messages", "conversations", "instruction", "input", "question", "system",
        "tools",
    )  # fmt: skip

    @field_validator("template")
    @classmethod
    def _files_are_read(cls, said: str | None) -> str | None:
        return None if said is None else read_template(said)

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    def text_metrics(self, references: Sequence[str] = ()) -> tuple[TextMetric, ...]:
        """Exact match, of final answers where they are extracted, and ROUGE."""
        extract = self.generate.extract if self.generate else None
        return EXACT._replace(counts=exact_counts(extract)), rouges(self.score_tokenizer)

    def used_roles(self, there: Collection[str]) -> Collection[str]:
        """The columns of the format that the rows are in."""
        found = detect_format(there) if self.format == "auto" else self.format
        if found is None or not set(FORMATS[found][0]) <= set(there):
            return there
        return {*FORMATS[found][0], "system", "tools", *(["input"] if found == "alpaca" else [])}

    def auto_class(self, config: "PretrainedConfig | None" = None) -> Any:
        """The causal language models.

        Raises `RecipeError` for models with an encoder, which continue no conversation.
        """
        if config is not None and config.is_encoder_decoder:
            what = f"{config.model_type} has an encoder: it does not continue a conversation"
            raise RecipeError(
                "the model does not suit the task:",
                [Fault("model", f"{what} - use a causal language model, or task=translation")],
            )
        return super().auto_class(config)

    def label_names(self, splits: "Splits") -> tuple[str, ...]:
        """None: answers are text. Raises `DataError` for rows that are no conversations."""
        found = self._format(splits.train.column_names)
        faults = []
        for split in SPLITS:
            rows = getattr(splits, split)
            wrong: dict[str, list[str]] = {}
            for row in rows:
                try:
                    place, what = "", find_fault(to_conversation(row, found, self.system).messages)
                except MessageError as error:
                    place, what = error.place, error.what
                if what:
                    wrong.setdefault(what, []).append(f"{row['row']}{place}")
            faults += row_faults(split, len(rows), wrong)
        if self.metric in ("exact_match", "rougeL") and self.generate is None:
            what = f"{self.metric} is a score of generated texts, and none are asked for"
            faults.append(Fault("task.generate", f"{what} - set task.generate={{rows: 200}}"))
        if faults:
            raise DataError(UNUSABLE, faults)
        return ()

    def check_rows(self, splits: "Splits", tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
        """What messages say in keys that the chat template shows nothing of, as ids.

        Raises `DataError` for keys that a model must see, as `tool_calls`.
        """
        template, faults, notes = ChatTemplate(tokenizer, self.template), list[Fault](), list[str]()
        for split in SPLITS:
            rows = getattr(splits, split)
            talks = ((row["row"], trim_to_last_answer(self._talk(row, 0))) for row in rows)
            found = check_fields(talks, template)
            faults += row_faults(split, len(rows), found.faults)
            notes += [
                f"{split}: {key!r} of messages is not shown by the chat template ({len(names)} of "
                f"{len(rows)} rows)"
                for key, names in found.unsaid.items()
            ]
        if faults:
            raise DataError(UNUSABLE, faults)
        return tuple(notes)

    def fit_on_train(self, splits: "Splits") -> dict[str, Any]:
        """The format of the rows, and whether any ends in more than the text of an answer."""
        found = self._format(splits.train.column_names)
        rows = (row for split in SPLITS for row in getattr(splits, split))
        talks = (trim_to_last_answer(to_conversation(row, found, self.system)) for row in rows)
        more = any(set(talk.messages[-1]) & set(REQUIRED_FIELDS) for talk in talks)
        return {"format": found, **({"says_more": True} if more else {})}

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """Conversations as tokens, the answers' as labels; several examples of a row where its
        earlier answers are written another way than the last."""
        template = ChatTemplate(tokenizer, self.template)
        texts, of = [], []
        for index, talk in enumerate(self.conversations(rows, tokenizer, max_length)):
            for text in template.render_answers(talk):
                texts.append(text)
                of.append(index)
        found: list[TokenizedChat] = tokenize_chats(texts, template, max_length)
        more = {"reference": self._spoken(rows, texts, of, template)} if self._says_more else {}
        return {
            **more,
            "input_ids": [each.input_ids for each in found],
            "labels": [each.labels for each in found],
            "bytes": [each.num_bytes for each in found],
            "truncated": [each.truncated for each in found],
            "of": of,
        }

    def prompts(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> list[list[int]]:
        """Each conversation up to where its last answer begins; the end of one that is too long.

        Raises `DataError` for what the chat template does not show, and a model must see.
        """
        template = ChatTemplate(tokenizer, self.template)
        talks = list(map(remove_last_answer, self._whole(rows)))
        named = ((f"row {number}", talk) for number, talk in enumerate(talks, 1))
        if wrong := check_fields(named, template).faults:
            raise DataError(UNUSABLE, row_faults("rows", len(talks), wrong))
        texts = [template.render(talk, asks=True) for talk in talks]
        how = {"add_special_tokens": False, "verbose": False}
        tokens = encode_rendered(tokenizer, texts, **how)["input_ids"]
        return [list(ids[-max_length:]) for ids in tokens]

    def prompt_rows(self, rows: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """The rows without what nobody answers in them: their last answers are to be generated."""
        lists = [name for name in MESSAGE_COLUMNS if name in rows]
        cut = {name: [trim_unanswered(cell, name) for cell in rows[name]] for name in lists}
        return {**rows, **cut}

    def references(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The last answer of each conversation."""
        return [message_text(talk.messages[-1]) for talk in self._read(rows)]

    def _references_of(self, given: "EvalSplit") -> list[str]:
        """The last answers; calls of tools and thoughts as the template writes them."""
        if "reference" not in columns_in(given.examples):
            return super()._references_of(given)
        both = zip(given.examples["of"], given.examples["reference"], strict=True)
        return list(dict(both).values())  # of several texts of a row the last one

    @property
    def _says_more(self) -> bool:
        return bool(self.fitted_state.get("says_more"))

    def _spoken(
        self,
        rows: Mapping[str, Sequence[Any]],
        texts: Sequence[RenderedChat],
        of: Sequence[int],
        template: ChatTemplate,
    ) -> list[str]:
        """For each text the last answer in it as it is generated."""
        prompts = [
            template.render(remove_last_answer(talk), asks=True) for talk in self._read(rows)
        ]
        return [
            extract_answer(text, prompts[row], template)
            for text, row in zip(texts, of, strict=True)
        ]

    def prompt_format(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
        """A conversation, behind the system prompt where it has none; and how the chat template
        takes contents in parts and the arguments of tools' calls."""
        template = ChatTemplate(tokenizer, self.template)
        taken = {"parts": template.accepts_parts, "text_arguments": template.needs_text_arguments}
        return {"kind": "conversation", "system": self.system, **taken}

    def prompt_inputs(self, rows: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """The conversations with their tools, without the answers that they end in."""
        return [remove_last_answer(talk)._asdict() for talk in self._whole(rows)]

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The tokens that end a turn."""
        return ChatTemplate(tokenizer, self.template).stop_ids()

    def chat_template(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """The one that conversations are written by."""
        return ChatTemplate(tokenizer, self.template).portable_text

    def conversations(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: Any, max_length: int
    ) -> list[Conversation]:
        """The rows' conversations, to the last answer where there is one; of any length."""
        return self._read(rows)

    def _read(self, rows: Mapping[str, Sequence[Any]]) -> list[Conversation]:
        """The rows' conversations, to the last answer where there is one."""
        return list(map(trim_to_last_answer, self._whole(rows)))

    def _whole(self, rows: Mapping[str, Sequence[Any]]) -> list[Conversation]:
        """The rows' conversations."""
        whole = enumerate(zip(*rows.values(), strict=True), 1)
        return [self._talk(dict(zip(rows, row, strict=True)), number) for number, row in whole]

    def _talk(self, row: Mapping[str, Any], number: int) -> Conversation:
        """One row's; each that a prediction is made from may come in a format of its own."""
        known = {name: value for name, value in row.items() if value is not None}
        found = self.fitted_state.get("format")
        if found is None or not set(FORMATS[found][0][:1]) <= set(known):
            found = self._format(list(known), asked=True)
        try:
            return to_conversation(known, found, self.system)
        except MessageError as error:
            where = f"{row.get('row', f'row {number}')}{error.place}"
            raise DataError(UNUSABLE, [Fault(where, error.what)]) from None

    def _format(self, columns: Sequence[str], asked: bool = False) -> str:
        """The format of rows with such columns."""
        if self.format != "auto" and not asked:
            needed = FORMATS[self.format][0]
            if missing := [name for name in needed if name not in columns]:
                where = f"data.columns.{missing[0]}"
                what = f"the format {self.format} needs a column {missing[0]!r} - name it here"
                raise DataError("the data does not suit the task:", [Fault(where, what)])
            return self.format
        found = detect_format(columns, asked)
        if found is None:
            known = "; ".join(f"{n}: {', '.join(needed)}" for n, (needed, _) in FORMATS.items())
            what = f"hold no known format ({known}) - name yours, as data.columns.prompt=question"
            raise DataError("the data does not suit the task:", [Fault("the columns", what)])
        return found
