"""Instructions and chat: a causal language model learns to answer, turn by turn."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from peftkit.chat_templates import (
    Template,
    Tokens,
    is_answer,
    template_text,
    tokens_of,
)
from peftkit.conversations import (
    COLUMNS,
    FORMATS,
    LISTS,
    Message,
    faults_in,
    format_of,
    messages_of,
    without_unanswered,
)
from peftkit.errors import DataError, Fault, RecipeError
from peftkit.language import LanguageModelling
from peftkit.tasks import Task
from peftkit.text_scores import EXACT, ROUGES, Counted, exact_counts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from peftkit.data import Splits
    from peftkit.data.preflight import Need

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer"]


class Instructions(LanguageModelling, Task):
    """What the assistant of a conversation says: the loss is on its answers and on their ends."""

    kind: Literal["instructions"] = "instructions"
    format: Format = "auto"
    """How rows hold conversations; auto: told by their columns. messages: a list of {role,
    content}; sharegpt: conversations of {from, value}; alpaca: instruction, input, output; prompt
    and completion; question and answer."""
    template: str | None = None
    """Chat template: a Jinja file or its text, in place of the tokenizer's own; plain: Q: ... A:
    ..., for base models. Part of the run's name by its content."""
    system: str | None = None
    """System prompt of conversations that have none."""
    metric: Literal["bits_per_byte", "exact_match", "rougeL", "perplexity", "loss"] = (
        "bits_per_byte"
    )
    """The headline score; of generated texts only where `generate` is set."""

    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"chat": {}}
    roles: ClassVar["Mapping[str, Need]"] = dict.fromkeys(COLUMNS, False)
    inputs: ClassVar[tuple[str, ...]] = (
        "prompt", "messages", "conversations", "instruction", "input", "question", "system",
    )  # fmt: skip

    @field_validator("template")
    @classmethod
    def _files_are_read(cls, said: str | None) -> str | None:
        return None if said is None else template_text(said)

    @property
    def headline(self) -> str:
        """The chosen metric."""
        return self.metric

    def judged_by(self) -> tuple[Counted, ...]:
        """Exact match, of final answers where they are extracted, and ROUGE."""
        extract = self.generate.extract if self.generate else None
        return EXACT._replace(counts=exact_counts(extract)), ROUGES

    def used_roles(self, there: Collection[str]) -> Collection[str]:
        """The columns of the format that the rows are in."""
        found = format_of(there) if self.format == "auto" else self.format
        if found is None:
            return there
        return {*FORMATS[found][0], "system", *(["input"] if found == "alpaca" else [])}

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
        for split in ("train", "validation", "test"):
            rows = getattr(splits, split)
            wrong: dict[str, list[str]] = {}
            for row in rows:
                if what := faults_in(messages_of(row, found, self.system)):
                    wrong.setdefault(what, []).append(row["row"])
            for what, names in wrong.items():
                where = f"{split}, {len(names)} of {len(rows)} rows ({', '.join(names[:3])})"
                faults.append(Fault(where, f"{what} - mend or leave out the rows"))
        if self.metric in ("exact_match", "rougeL") and self.generate is None:
            what = f"{self.metric} is a score of generated texts, and none are asked for"
            faults.append(Fault("task.generate", f"{what} - set task.generate={{rows: 200}}"))
        if faults:
            raise DataError("the conversations cannot be used:", faults)
        return ()

    def learned(self, splits: "Splits") -> dict[str, Any]:
        """The format of the rows."""
        return {"format": self._format(splits.train.column_names)}

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        tokenizer: "PreTrainedTokenizerBase",
        names: Sequence[str],
        max_length: int,
    ) -> dict[str, list[Any]]:
        """Conversations as tokens, the answers' as labels; several examples of a row where its
        earlier answers are written another way than the last."""
        template = Template(tokenizer, self.template)
        texts, of = [], []
        for index, messages in enumerate(self.conversations(rows, tokenizer, max_length)):
            for text in template.rendered(messages):
                texts.append(text)
                of.append(index)
        found: list[Tokens] = tokens_of(texts, template, max_length)
        return {
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
        """Each conversation up to where its last answer begins; the end of one that is too long."""
        template = Template(tokenizer, self.template)
        texts = [template.render(asked(talk), asks=True) for talk in self._whole(rows)]
        tokens = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [list(ids[-max_length:]) for ids in tokens]

    def openings(self, rows: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """The rows without what nobody answers in them: their last answers are to be generated."""
        lists = [name for name in LISTS if name in rows]
        return {**rows, **{name: list(map(without_unanswered, rows[name])) for name in lists}}

    def references(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The last answer of each conversation."""
        return [messages[-1]["content"] for messages in self._read(rows)]

    def prompt_format(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
        """A conversation, behind the system prompt where it has none."""
        return {"kind": "conversation", "system": self.system}

    def prompt_inputs(self, rows: Mapping[str, Sequence[Any]]) -> list[list[Message]]:
        """The conversations, without the answers that they end in."""
        return list(map(asked, self._whole(rows)))

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The tokens that end a turn."""
        return Template(tokenizer, self.template).stop_ids()

    def chat_template(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """The one that conversations are written by."""
        return Template(tokenizer, self.template).portable

    def conversations(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: Any, max_length: int
    ) -> list[list[Message]]:
        """The rows' messages, to the last answer where there is one; of any length."""
        return self._read(rows)

    def _read(self, rows: Mapping[str, Sequence[Any]]) -> list[list[Message]]:
        """The rows' messages, to the last answer where there is one."""
        return list(map(upto_last_answer, self._whole(rows)))

    def _whole(self, rows: Mapping[str, Sequence[Any]]) -> list[list[Message]]:
        """The rows' messages."""
        whole = zip(*rows.values(), strict=True)
        return [self._messages(dict(zip(rows, row, strict=True))) for row in whole]

    def _messages(self, row: Mapping[str, Any]) -> list[Message]:
        """One row's; each that a prediction is made from may come in a format of its own."""
        known = {name: value for name, value in row.items() if value is not None}
        found = self.carried.get("format")
        if found is None or not set(FORMATS[found][0][:1]) <= set(known):
            found = self._format(list(known), asked=True)
        return messages_of(known, found, self.system)

    def _format(self, columns: Sequence[str], asked: bool = False) -> str:
        """The format of rows with such columns."""
        if self.format != "auto" and not asked:
            needed = FORMATS[self.format][0]
            if missing := [name for name in needed if name not in columns]:
                where = f"data.columns.{missing[0]}"
                what = f"the format {self.format} needs a column {missing[0]!r} - name it here"
                raise DataError("the data does not suit the task:", [Fault(where, what)])
            return self.format
        found = format_of(columns, asked)
        if found is None:
            known = "; ".join(f"{n}: {', '.join(needed)}" for n, (needed, _) in FORMATS.items())
            what = f"hold no known format ({known}) - name yours, as data.columns.prompt=question"
            raise DataError("the data does not suit the task:", [Fault("the columns", what)])
        return found


def upto_last_answer(messages: list[Message]) -> list[Message]:
    """A conversation without what nobody answers; one without answers as it is."""
    answers = [index for index, message in enumerate(messages) if is_answer(message)]
    return messages[: answers[-1] + 1] if answers else messages


def asked(messages: list[Message]) -> list[Message]:
    """A conversation without its last answer."""
    return messages[:-1] if messages and is_answer(messages[-1]) else messages
