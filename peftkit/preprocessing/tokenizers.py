"""Checks of a tokenizer against the embeddings of its model, and its padding token."""

from typing import Any

from transformers import PretrainedConfig

from peftkit.errors import Fault, RecipeError
from peftkit.tasks.base import Task

SHOWN_TOKENS = 3


def embedding_rows(config: PretrainedConfig) -> int | None:
    """How many tokens the model has an embedding for; None where its configuration does not say."""
    rows = getattr(config.get_text_config(decoder=False), "vocab_size", None)
    return None if rows is None else int(rows)


def set_padding_token(tokenizer: Any, rows: int | None) -> str | None:
    """Give the tokenizer a padding token that has an embedding; what a reader must know of it.

    Padding is never read, so that any token does where there is none for it alone.
    """
    pad, known = tokenizer.pad_token, tokenizer.pad_token_id
    if pad is not None and (rows is None or known < rows):
        return None
    tokenizer.pad_token = stand_in = padding_of(tokenizer, rows)
    if pad is None:
        return None
    what = f"the padding token {pad!r} (id {known}) has no row in the model's {rows} embeddings"
    return f"{what}: {stand_in!r} pads in its place"


def padding_of(tokenizer: Any, rows: int | None) -> str:
    """A token that can pad: the end of a text, the unknown token, or the first of all."""
    for name in ("eos_token", "unk_token", "bos_token"):
        token = getattr(tokenizer, name)
        if token is not None and (rows is None or tokenizer.convert_tokens_to_ids(token) < rows):
            return str(token)
    return str(tokenizer.convert_ids_to_tokens(0))


def check_embedding_rows(tokenizer: Any, task: Task) -> None:
    """Raise `RecipeError` where texts can become tokens that the model has no embedding for.

    A special token that neither the tokenizer nor a chat template writes is none of these, as the
    one for images that Gemma 3's tokenizer has and its models of text do not know.
    """
    rows: int | None = tokenizer.rows
    ids: dict[str, int] = tokenizer.get_vocab() if rows is not None else {}
    beyond = [(index, token) for token, index in ids.items() if index >= (rows or 0)]
    if not beyond:
        return
    special, written = special_of(tokenizer), tokens_written(tokenizer, task)
    template = template_of(tokenizer, task)
    reached = sorted(
        (index, token)
        for index, token in beyond
        if token not in special or index in written or token in template
    )
    if reached and rows is not None:
        raise RecipeError("the model does not suit its tokenizer:", [beyond_fault(reached, rows)])


def beyond_fault(reached: list[tuple[int, str]], rows: int) -> Fault:
    """What is wrong with tokens that have no embedding."""
    some = ", ".join(f"{token!r} (id {index})" for index, token in reached[:SHOWN_TOKENS])
    more = f" and {len(reached) - SHOWN_TOKENS} more" if len(reached) > SHOWN_TOKENS else ""
    what = f"its tokenizer has {some}{more}, and its embeddings have {rows} rows"
    fix = "name a model whose tokenizer belongs to its weights, or give it the rows first: "
    fix += f"transformers' resize_token_embeddings({reached[-1][0] + 1}), then save_pretrained"
    return Fault("model", f"{what} - {fix}")


def special_of(tokenizer: Any) -> set[str]:
    """The special tokens, which no text becomes."""
    added = tokenizer.added_tokens_decoder.values()
    return {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)


def tokens_written(tokenizer: Any, task: Task) -> set[int]:
    """The ids that the tokenizer puts around texts, and that end or begin what is said."""
    around = tokenizer("")["input_ids"]
    said = (tokenizer.bos_token_id, tokenizer.eos_token_id) if task.reading == "labels" else ()
    return {*around, *(index for index in said if index is not None)}


def template_of(tokenizer: Any, task: Task) -> str:
    """The text of the chat template that the task has conversations written by; '' if none."""
    if not hasattr(task, "template") or getattr(tokenizer, "feeds_encoder", False):
        return ""
    said = task.template or tokenizer.chat_template
    return said if isinstance(said, str) else ""


def check_token_ids(examples: Any, tokenizer: Any) -> None:
    """Raise `RecipeError` where encoded texts hold a token that the model has no embedding for."""
    import pyarrow.compute

    rows: int | None = tokenizer.rows
    for split in examples.values() if rows is not None else ():
        if not len(split):
            continue
        tokens = pyarrow.compute.list_flatten(split.with_format("arrow")[:]["input_ids"])
        largest = pyarrow.compute.max(tokens).as_py()
        if largest is not None and largest >= rows:
            fault = beyond_fault([(largest, tokenizer.convert_ids_to_tokens(largest))], rows or 0)
            raise RecipeError("the model does not suit its tokenizer:", [fault])
