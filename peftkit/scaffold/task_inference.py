"""Inference of a task and its columns from column profiles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftkit.scaffold.column_profile import ColumnProfile
from peftkit.text.conversations import FORMATS, detect_format

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAIRS = [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
         ("text1", "text2"), ("question", "sentence"), ("text", "text_pair")]  # fmt: skip
SEQ2SEQ_COLUMNS = {
    "summarization": [("dialogue", "summary"), ("document", "summary"), ("article", "highlights"),
                      ("article", "summary"), ("text", "summary")],
    "translation": [("source", "target")],
}  # fmt: skip
LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "hi": "Hindi", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip
TOKENS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "ner", "labels", "pos_tags", "upos", "pos")
Columns = Mapping[str, ColumnProfile]


@dataclass(frozen=True)
class TaskGuess:
    """The inferred task and the columns that it reads."""

    task: dict[str, Any]
    data: dict[str, Any]
    """Settings of the data other than its path."""
    why: str
    read: dict[str, ColumnProfile]
    """Columns to read, by what they are called in the description."""
    texts: tuple[ColumnProfile, ...]
    """Columns whose lengths determine max_length."""
    model: str = ENCODER
    notes: tuple[str, ...] = ()
    epochs: int | None = None
    """None: chosen by the number of rows."""
    longest: int = 512
    extra_tokens: int = 0
    """Tokens that a template adds to an example."""
    facts: dict[str, str] = field(default_factory=dict)
    """Description of a column instead of its length."""


def infer_task(columns: Columns) -> TaskGuess | None:
    """Return the task that the columns suggest, by the most specific rule; None if no rule
    applies."""
    for recognize in INFERENCE_RULES:
        found = recognize(columns)
        if found is not None:
            return found
    return None


def infer_question_answering(columns: Columns) -> TaskGuess | None:
    """Match questions with contexts and answers."""
    names = ("question", "context", "answers")
    if not all(name in columns for name in names):
        return None
    read = {name: columns[name] for name in names}
    unanswered = columns["answers"].num_hollow > 0
    task: dict[str, Any] = {"kind": "question_answering"}
    if unanswered:
        task["unanswerable"] = True
    return TaskGuess(
        task, {}, "columns question, context and answers", read,
        (columns["question"], columns["context"]), longest=384,
        facts={"answers": "some are empty" if unanswered else "each has one"},
    )  # fmt: skip


def infer_instruction_tuning(columns: Columns) -> TaskGuess | None:
    """Match conversations in one of the common formats."""
    name = detect_format(list(columns))
    if name is None:
        return None
    needed = FORMATS[name][0]
    if name in ("question_answer", "prompt_completion", "alpaca") and columns[needed[1]].is_label:
        return None  # a few answers, each many times: classes
    also = [role for role in ("input",) if name == "alpaca" and role in columns]
    read = {role: columns[role] for role in (*needed, *also)}
    return TaskGuess(
        {"kind": "instruction_tuning"}, {}, f"the columns of the format {name}", read,
        tuple(read.values()), LANGUAGE_MODEL, epochs=1, longest=1024, extra_tokens=40,
    )  # fmt: skip


def infer_token_classification(columns: Columns) -> TaskGuess | None:
    """Match lists of words with a tag for each."""
    words = _first(columns, TOKENS)
    if words is None or not words.is_words:
        return None
    alike = [c for c in columns.values() if c is not words and c.sizes == words.sizes]
    known = {column.name: column for column in alike}
    tags = _first(known, TAGS) or next(iter(alike), None)
    if tags is None:
        return None
    marks = any(item[:2] in ("B-", "I-", "S-", "U-") for item in tags.items)
    task: dict[str, Any] = (
        {"kind": "token_classification"}
        if marks
        else {"kind": "token_classification", "scheme": "none"}
    )
    what = "entities" if marks else "plain tags"
    others = [c.name for c in alike if c is not tags]
    notes = [f"other columns of tags: {', '.join(others)}"] if others else []
    return TaskGuess(
        task, {"columns": _column_mapping({"tokens": words, "tags": tags})},
        f"column {tags.name!r} has a tag for each word ({what})", {"tokens": words, "tags": tags},
        (words,), notes=tuple(notes), epochs=3,
        facts={"tokens": f"{sum(words.sizes) / max(1, len(words.sizes)):.0f} words on average",
               "tags": f"{len(tags.items)} tags: {_list_some(tags.items)}"},
    )  # fmt: skip


def infer_seq2seq(columns: Columns) -> TaskGuess | None:
    """Match texts with summaries or translations."""
    for kind, pairs in SEQ2SEQ_COLUMNS.items():
        for source, target in pairs:
            if source in columns and target in columns:
                return _seq2seq_guess(kind, columns[source], columns[target], None)
    languages = [c for name, c in columns.items() if name in LANGUAGES and c.is_text]
    if len(languages) != 2:
        return None
    first, second = languages
    return _seq2seq_guess("translation", first, second, LANGUAGES[second.name])


def _seq2seq_guess(
    kind: str, source: ColumnProfile, target: ColumnProfile, into: str | None
) -> TaskGuess | None:
    if target.is_label or not (source.is_text and target.num_texts):
        return None
    task = {"kind": kind, **({"into": into} if into else {})}
    return TaskGuess(
        task, {"columns": _column_mapping({"source": source, "target": target})},
        f"columns {source.name!r} and {target.name!r}", {"source": source, "target": target},
        (source, target), LANGUAGE_MODEL, epochs=2, longest=1024, extra_tokens=40,
    )  # fmt: skip


def infer_labeled(columns: Columns) -> TaskGuess | None:
    """Match one or two texts with a class, several labels, a relation or a number."""
    texts = find_texts(columns)
    if not texts:
        return None
    rest = [column for column in columns.values() if column not in texts]
    data = {"text": texts[0].name, **({"text_pair": texts[1].name} if texts[1:] else {})}
    read = dict(zip(("text", "second text"), texts, strict=False))
    several = next((c for c in rest if _holds_several(c)), None)
    if several is not None and not _has_better(rest, several):
        return _multilabel_guess(data, read, several, texts)
    label, scales = find_label(rest), find_scales(rest)
    if label is None and scales:
        return _regression_guess(data, read, scales[0], texts, rest)
    if label is None:
        return None
    task: dict[str, Any] = {"kind": "text_classification"}
    why = "the label has few values"
    if texts[0].is_marked:
        task, why = {"kind": "relation_extraction"}, "two parts of each text are marked"
        task |= {} if "Other" in label.values else {"other": None}
    facts = {"label": f"{label.num_values} values: {_list_some(label.values)}"}
    data |= {"label": label.name}
    return TaskGuess(task, data, why, read | {"label": label}, texts, facts=facts)


def _holds_several(column: ColumnProfile) -> bool:
    """Return whether a column's cells are sets of a few labels."""
    if column.is_words:
        return 2 <= len(column.items) <= min(100, max(2, column.num_rows // 3))
    mark = column.separator if column.is_called_label else None
    # a class name may contain a comma
    return mark is not None and (mark != "," or not column.is_label)


def _has_better(rest: list[ColumnProfile], several: ColumnProfile) -> bool:
    """Return whether another column has the name of a label and this one does not."""
    called = [c for c in rest if c.is_called_label and c is not several and c.is_label]
    return bool(called) and not several.is_called_label


def _multilabel_guess(
    data: dict[str, Any],
    read: dict[str, ColumnProfile],
    label: ColumnProfile,
    texts: tuple[ColumnProfile, ...],
) -> TaskGuess:
    task: dict[str, Any] = {"kind": "multilabel"}
    items = label.items
    if not label.is_words and label.separator is not None:
        task["separator"] = label.separator
        cells = (value.split(label.separator) for value in label.values)
        items = {part.strip() for cell in cells for part in cell}
    facts = {"label": f"{len(items)} labels: {_list_some(items)}"}
    data = data | {"label": label.name}
    why = "the label's cells hold several labels"
    return TaskGuess(task, data, why, read | {"label": label}, texts, facts=facts)


def _regression_guess(
    data: dict[str, Any],
    read: dict[str, ColumnProfile],
    label: ColumnProfile,
    texts: tuple[ColumnProfile, ...],
    rest: list[ColumnProfile],
) -> TaskGuess:
    numbers = [float(value) for value in label.values]
    facts = {"label": f"numbers from {min(numbers):g} to {max(numbers):g}"}
    others = [column.name for column in rest if column.is_label]
    notes = [f"columns that could be a label of classes: {', '.join(others)}"] if others else []
    data = data | {"label": label.name}
    why = "the label holds numbers on a scale"
    return TaskGuess(
        {"kind": "regression"}, data, why, read | {"label": label}, texts, notes=tuple(notes),
        facts=facts,
    )  # fmt: skip


def find_texts(columns: Columns) -> tuple[ColumnProfile, ...]:
    """Return the text column, or the two columns of a known text pair."""
    texts = {name: column for name, column in columns.items() if column.is_text}
    for first, second in PAIRS:
        if first in texts and second in texts:
            return texts[first], texts[second]
    return tuple(sorted(texts.values(), key=lambda column: -column.mean_words)[:1])


def find_label(columns: list[ColumnProfile]) -> ColumnProfile | None:
    """Return the column with few values, preferring usual names of a label."""
    usable = [column for column in columns if column.is_label]
    usable.sort(key=lambda column: (not column.is_called_label, column.num_values))
    called = [c for c in columns if c.is_called_label and c.num_values > 1]
    if called and called[0] not in usable and called[0].is_scale:
        return None  # a number to predict: another column with few values is not what is meant
    return usable[0] if usable else None


def find_scales(columns: list[ColumnProfile]) -> list[ColumnProfile]:
    """Return the columns with numbers to predict, those with the name of a label first."""
    found = [c for c in columns if c.is_scale and (c.fractional or c.is_called_label)]
    return sorted(found, key=lambda column: not column.is_called_label)


def _first(columns: Columns, names: tuple[str, ...]) -> ColumnProfile | None:
    return next((columns[name] for name in names if name in columns), None)


def _column_mapping(roles: Mapping[str, ColumnProfile]) -> dict[str, str]:
    """Return role to column where their names differ."""
    return {role: column.name for role, column in roles.items() if column.name != role}


def _list_some(values: set[str]) -> str:
    ordered = sorted(values)
    return ", ".join(ordered[:6]) + (", ..." if len(ordered) > 6 else "")


INFERENCE_RULES: tuple[Callable[[Columns], TaskGuess | None], ...] = (
    infer_question_answering,
    infer_instruction_tuning,
    infer_token_classification,
    infer_seq2seq,
    infer_labeled,
)
"""Most specific rules first."""
