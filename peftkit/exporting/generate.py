"""Texts as the model in this folder says them: `generate(model, tokenizer, texts)`.

`load.py` gives both. A text is a prompt that the model answers or continues; for a model of
conversations it may be one, a list of {"role": ..., "content": ...}, or {"messages": ...,
"tools": ...}.
"""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

HERE = Path(__file__).resolve().parent
PROMPT = json.loads((HERE / "loading.json").read_text(encoding="utf-8"))["prompts"]
"""How a text becomes what the model reads, and the texts that end an answer."""
SPECIAL_TOKENS = runpy.run_path(str(HERE / "special_token_text.py"))
"""Tokenization in which special tokens inside a text are ordinary text."""
ROWS = 8
"""Texts that are continued together."""


def generate(model: Any, tokenizer: Any, texts: Sequence[Any], **how: Any) -> list[str]:
    """What the model says to each text; `how` goes to transformers' `generate`, and comes before
    the settings in `generation_config.json`."""
    ends = ends_of(model)
    answers = answers_of(model, tokenizer, texts, **how)
    return [text_of(tokenizer, ids, ends).strip() for ids in answers]


@torch.no_grad()
def answers_of(model: Any, tokenizer: Any, texts: Sequence[Any], **how: Any) -> list[list[int]]:
    """The tokens of what the model says to each text, the one that ends it included."""
    prompts = [prompt_of(tokenizer, text) for text in texts]
    apart, pad = model.config.is_encoder_decoder, tokenizer.pad_token_id
    ends = ends_of(model)
    found: list[list[int]] = []
    for first in range(0, len(prompts), ROWS):
        batch = prompts[first : first + ROWS]
        width = max(map(len, batch))
        start = 1 if apart else width
        stops = StoppingCriteriaList([Stops(tokenizer, start)] if PROMPT["stop"] else [])
        ids = torch.tensor([filled(ids, width, pad, apart) for ids in batch])
        seen = torch.tensor([filled([1] * len(ids), width, 0, apart) for ids in batch])
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=seen.to(model.device),
            stopping_criteria=stops,
            **how,
        )
        found += [upto_end(ids, ends) for ids in output[:, start:].tolist()]
    return found


def filled(values: Sequence[int], width: int, filler: int, behind: bool) -> list[int]:
    """The values, filled on one side: before what is continued, behind what an encoder reads."""
    more = [filler] * (width - len(values))
    return [*values, *more] if behind else [*more, *values]


def ends_of(model: Any) -> list[int]:
    """The tokens that end an answer."""
    end_ids = model.generation_config.eos_token_id
    return [end_ids] if isinstance(end_ids, int) else list(end_ids or [])


def upto_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to the first that ends an answer."""
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: last + 1])


class Stops(StoppingCriteria):
    """Ends a row once its answer holds one of the texts that do."""

    def __init__(self, tokenizer: Any, start: int) -> None:
        self.tokenizer, self.start = tokenizer, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        """Whether each row is done."""
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        done = [any(stop in text for stop in PROMPT["stop"]) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def text_of(tokenizer: Any, ids: Sequence[int], ends: Sequence[int]) -> str:
    """An answer's tokens as text, up to the first of the texts that end one."""
    kept = [token for token in ids if token not in ends]
    text: str = tokenizer.decode(kept, skip_special_tokens=True)
    found = [text.find(stop) for stop in PROMPT["stop"] if stop in text]
    return text[: min(found, default=len(text))]


def prompt_of(tokenizer: Any, text: Any) -> list[int]:
    """The tokens that the model reads for a text, or for a conversation."""
    return BY_KIND[PROMPT["kind"]](tokenizer, text)


def source(tokenizer: Any, text: str) -> list[int]:
    """What an encoder reads."""
    if PROMPT["languages"]:
        tokenizer.src_lang, tokenizer.tgt_lang = PROMPT["languages"]
    whole = PROMPT["prompt"].replace("{source}", protect(tokenizer, text))
    return ids_of(tokenizer, whole, truncation=True, max_length=PROMPT["max_length"])


def opening(tokenizer: Any, text: str) -> list[int]:
    """A text to continue, after what each begins with; the end of one that is too long."""
    lead = list(PROMPT["begins"])
    for marker in PROMPT["leads"]:
        if text.startswith(marker):
            text = text.removeprefix(marker)
            lead.append(tokenizer.convert_tokens_to_ids(marker))
            break
    ids = ids_of(tokenizer, protect(tokenizer, text), add_special_tokens=False)
    return [*lead, *ids[-max(1, PROMPT["max_length"] - len(lead)) :]]


def question(tokenizer: Any, text: str) -> list[int]:
    """A request about a text, which is cut from behind so that an answer fits."""
    around = rendered(tokenizer, [user(PROMPT["prompt"].replace("{source}", ""))])
    room = PROMPT["max_length"] - PROMPT["target_length"] - len(around)
    how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    (ends,) = SPECIAL_TOKENS["encode_text"](tokenizer, [text], **how)["offset_mapping"]
    kept = text[: ends[room - 1][1]] if len(ends) > room else text
    return rendered(tokenizer, [user(PROMPT["prompt"].replace("{source}", kept))])


def conversation(tokenizer: Any, text: Any) -> list[int]:
    """A conversation up to where its next answer begins; the end of one that is too long."""
    whole = text if isinstance(text, dict) else {"messages": text}
    messages = whole["messages"]
    messages = [user(messages)] if isinstance(messages, str) else list(map(taken, messages))
    if PROMPT["system"] and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": PROMPT["system"]}, *messages]
    return rendered(tokenizer, messages, whole.get("tools"))[-PROMPT["max_length"] :]


def taken(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the chat template takes it: some want texts for lists of parts, or for the
    arguments of a tool's call."""
    found = {key: value for key, value in message.items() if key != "train"}
    if not isinstance(found["content"], str) and not PROMPT["parts"]:
        found["content"] = "".join(part["text"] for part in found["content"])
    if found.get("tool_calls") and PROMPT["text_arguments"]:
        found["tool_calls"] = [
            {**call, "function": with_text(call["function"])} for call in found["tool_calls"]
        ]
    return found


def with_text(function: dict[str, Any]) -> dict[str, Any]:
    """A function to call, its arguments as JSON text."""
    return {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}


def user(text: str) -> dict[str, str]:
    """What is asked."""
    return {"role": "user", "content": text}


def rendered(tokenizer: Any, messages: list[Any], tools: Any = None) -> list[int]:
    """The tokens of a conversation, by the chat template."""
    safe, known = protect(tokenizer, messages), protect(tokenizer, tools)
    how: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    text = tokenizer.apply_chat_template(safe, tools=known, **how)
    return ids_of(tokenizer, text, add_special_tokens=False)


def protect(tokenizer: Any, value: Any) -> Any:
    """A user's texts, wherever they are in a value, with stand-ins for what is spelled as a special
    token."""
    if isinstance(value, str):
        return SPECIAL_TOKENS["escape_special_tokens"](tokenizer, value)
    if isinstance(value, dict):
        return {key: protect(tokenizer, inner) for key, inner in value.items()}
    return [protect(tokenizer, each) for each in value] if isinstance(value, list) else value


def ids_of(tokenizer: Any, text: str, **how: Any) -> list[int]:
    """The tokens of a text around texts with stand-ins."""
    (ids,) = SPECIAL_TOKENS["encode_rendered"](tokenizer, [text], verbose=False, **how)["input_ids"]
    return list(ids)


BY_KIND = {
    "source": source, "opening": opening, "question": question, "conversation": conversation,
}  # fmt: skip
