"""Messages: tools, thoughts, weights and parts, as data sets hold them and templates show them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftkit.config.recipe import Recipe
from peftkit.errors import DataError
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.planning.plan import plan
from peftkit.tasks.base import EvalSplit, Task
from peftkit.text.chat_templates import ChatTemplate
from peftkit.text.chat_tokens import tokenize_chats
from peftkit.text.conversations import Conversation, find_fault, to_conversation
from peftkit.text.messages import MessageError, message_text, parse_message, parse_tools

ASKED = {"role": "user", "content": "the rain near the goal"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "cloud"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
FOUND = {"role": "tool", "tool_call_id": "c1", "content": "a storm"}
SAID = {"role": "assistant", "content": "a storm near the goal"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
SHOWS = (
    "{% if tools %}[CLS] tools {{ tools | tojson }} [SEP]\n{% endif %}"
    "{% for m in messages %}[CLS] {{ m.role }} :"
    "{% if m.reasoning_content %} thinks {{ m.reasoning_content }} .{% endif %}"
    " {{ m.content }}"
    "{% for c in m.tool_calls %} calls {{ c.function.name }}"
    " {{ c.function.arguments | tojson }}{% endfor %} [SEP]\n{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant :{% endif %}"
)
CONTENTS = (
    "{% for m in messages %}[CLS] {{ m.role }} : {{ m.content }} [SEP]\n{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant :{% endif %}"
)


def tokenizer() -> Any:
    return load_tokenizer(find_model("tiny-llama").location)


def task(template: str = SHOWS, **more: Any) -> Any:
    return Task.parse({"kind": "instruction_tuning", "template": template, **more}, "task")


def talk_of(*messages: Any, tools: Any = None) -> Conversation:
    row = {"messages": list(messages), "tools": tools}
    return to_conversation(row, "messages", None)


def splits_of(*rows: Any, **columns: Any) -> Any:
    """Splits whose train rows hold such messages; cells as they are, for no file wrote them."""
    names = [f"a:{index}" for index in range(len(rows))]
    train = [
        {"row": name, "messages": row, **{key: column[index] for key, column in columns.items()}}
        for index, (name, row) in enumerate(zip(names, rows, strict=True))
    ]

    class Rows(list[Any]):
        column_names = ("row", "messages", *columns)

    return type("Splits", (), {"train": Rows(train), "validation": Rows(), "test": Rows()})


def learned(talk: Conversation, template: str = SHOWS) -> list[str]:
    how = ChatTemplate(tokenizer(), template)
    found = tokenize_chats(list(how.render_answers(talk)), how, 200)
    return [how.tokenizer.decode([i for i in each.labels if i != -100]) for each in found]


def squeezed(text: str) -> str:
    return text.replace(" ", "").replace("##", "")


def test_calls_of_tools_are_shown_and_learned_with_their_ends() -> None:
    talk = talk_of(ASKED, CALLING, FOUND, SAID, tools=TOOLS)
    assert find_fault(talk.messages) is None, "null content beside calls is not empty"
    (said,) = learned(talk)
    assert squeezed(said) == 'callslook{"at":"cloud"}[SEP]astormnearthegoal[SEP]'
    (prompt,) = task().prompts({"messages": [[ASKED]], "tools": [TOOLS]}, tokenizer(), 200)
    assert '"name":"look"' in squeezed(tokenizer().decode(prompt))


@pytest.mark.parametrize("how", ["mapping", "json", "flat", "all_json"])
def test_arguments_and_tools_mean_the_same_as_objects_and_as_json_text(how: str) -> None:
    call: Any = json.loads(json.dumps(CALL))
    if how == "json":
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    if how == "flat":
        call = {"id": "c1", **call["function"]}
    calls: Any = json.dumps([call]) if how == "all_json" else [call]
    tools: Any = json.dumps(TOOLS) if how == "all_json" else TOOLS
    told = talk_of(ASKED, {**CALLING, "tool_calls": calls}, tools=tools)
    assert told == talk_of(ASKED, CALLING, tools=TOOLS)
    whole = json.dumps([ASKED, CALLING])
    assert to_conversation({"messages": whole}, "messages", None) == talk_of(ASKED, CALLING)


def test_a_template_that_writes_arguments_as_they_are_gets_json_text() -> None:
    plain = SHOWS.replace(" | tojson }}{% endfor %} [SEP]", " }}{% endfor %} [SEP]")
    joined = SHOWS.replace(
        " {{ c.function.arguments | tojson }}", " {{ 'x' + c.function.arguments }}"
    )
    for template in (plain, joined):
        assert '{"at":"cloud"}' in squeezed(learned(talk_of(ASKED, CALLING), template)[0])


def test_thoughts_are_learned_before_what_is_said() -> None:
    thinking = {**SAID, "reasoning_content": "rain and cloud"}
    (said,) = learned(talk_of(ASKED, thinking))
    assert squeezed(said) == "thinksrainandcloud.astormnearthegoal[SEP]"


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        ({"weight": 0}, 1),
        ({"train": False}, 1),
        ({"weight": 1.0}, 2),
        ({"train": True}, 2),
        ({}, 2),
    ],
)
@pytest.mark.parametrize("marked", [False, True])
def test_answers_of_weight_zero_are_read_and_not_learned(
    mask: dict[str, Any], count: int, marked: bool
) -> None:
    template = CONTENTS
    if marked:
        template = template.replace(
            "{{ m.content }}",
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}",
        )
    first = {"role": "assistant", "content": "a cloud", **mask}
    talk = talk_of(ASKED, first, ASKED, SAID)
    (said,) = learned(talk, template)
    assert said == " ".join(["a cloud [SEP]", "a storm near the goal [SEP]"][2 - count :])
    (text,) = ChatTemplate(tokenizer(), template).render_answers(talk)
    assert "a cloud" in text.text
    keys = CONTENTS.replace("{{ m.content }}", "{{ m | tojson }}")
    assert all(
        key not in ChatTemplate(tokenizer(), keys).render(talk) for key in ("weight", "train")
    )


def test_what_follows_the_last_answer_to_be_learned_is_left_out() -> None:
    rows = {"messages": [[ASKED, SAID, ASKED, {**SAID, "content": "soup", "weight": 0}]]}
    assert task(CONTENTS).references(rows) == ["a storm near the goal"]
    (ids,) = task(CONTENTS).encode(rows, tokenizer(), (), 200)["input_ids"]
    assert "soup" not in tokenizer().decode(ids)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({**SAID, "weight": 0.5}, "weight should be 0 or 1 (got 0.5)"),
        ({**SAID, "train": "yes"}, "train should be true or false (got 'yes')"),
        ({**SAID, "weight": 0, "train": True}, "weight and train contradict each other"),
        ({**ASKED, "train": True}, "train asks to train on a message of the user"),
        ({**SAID, "content": [{"type": "image", "url": "x"}]}, "a part of type 'image'"),
        ({**SAID, "content": [{"url": "x"}]}, "a part with the keys url"),
        ({**SAID, "content": [["x"]]}, "a part of content is a list"),
        ({**CALLING, "tool_calls": [{"id": "c1"}]}, "without a function's name"),
        ({**CALLING, "tool_calls": ["look"]}, "tool_calls holds a text ('look')"),
        (
            {**CALLING, "tool_calls": [{"name": "look", "arguments": "{at"}]},
            "tool_calls.function.arguments is text that is not JSON ('{at'",
        ),
        (
            {**CALLING, "tool_calls": [{"name": "look", "arguments": [1]}]},
            "tool_calls.function.arguments is a list",
        ),
        ("hello", "a message is a text ('hello')"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_row_message_and_key(message: Any, said: str) -> None:
    good = [ASKED, SAID]
    with pytest.raises(DataError) as caught:
        task().label_names(splits_of(good, [ASKED, SAID, message], good))
    assert "train, 1 of 3 rows (a:1 message 3)" in str(caught.value)
    assert said in str(caught.value) and " - " in str(caught.value)
    with pytest.raises(DataError, match="row 2 message 3"):
        task().prompts({"messages": [good, [ASKED, SAID, message]]}, tokenizer(), 99)


def test_cells_that_are_no_messages_or_tools_are_refused_by_column() -> None:
    for row, said in (
        ({"messages": "say it"}, "messages is text that is not JSON ('say it'"),
        ({"messages": 4}, "messages is 4"),
        ({"messages": {"role": "user", "content": "x"}}, "messages is an object"),
        ({"messages": [ASKED], "tools": "[look]"}, "tools is text that is not JSON"),
        ({"messages": [ASKED], "tools": [4]}, "tools holds 4"),
    ):
        with pytest.raises(MessageError) as caught:
            to_conversation(row, "messages", None)
        assert caught.value.what.startswith(said) and " - " in caught.value.what


def test_nothing_said_in_a_key_is_no_key() -> None:
    bare = {"tool_calls": None, "name": "", "annotations": [], "weight": None, "value": None}
    assert parse_message({**SAID, **bare}) == SAID
    assert parse_message({"role": None, "content": None, "from": "gpt", "value": "x"}) == {
        "role": "assistant",
        "content": "x",
    }
    assert parse_tools(None) is parse_tools([]) is parse_tools("") is None


def test_an_answer_of_which_none_is_learned_or_nothing_is_said_is_refused() -> None:
    assert "there is no answer to train on" in str(
        find_fault(talk_of(ASKED, {**SAID, "weight": 0}).messages)
    )
    thought = {"role": "assistant", "content": "", "reasoning_content": "x"}
    assert find_fault(talk_of(ASKED, thought).messages) == "an answer is empty"


@pytest.mark.parametrize(
    ("messages", "tools", "key"),
    [
        ([ASKED, CALLING, FOUND, SAID], None, "tool_calls"),
        ([ASKED, SAID], TOOLS, "tools"),
        ([ASKED, {**SAID, "reasoning_content": "x"}], None, "reasoning_content"),
        ([ASKED, {**SAID, "function_call": {"name": "look"}}], None, "function_call"),
    ],
)
def test_what_a_template_does_not_show_and_a_model_must_see_is_refused(
    messages: Any, tools: Any, key: str
) -> None:
    splits = splits_of([ASKED, SAID], messages, tools=[None, tools])
    with pytest.raises(DataError) as caught:
        task(CONTENTS).check_rows(splits, tokenizer())
    assert f"train, 1 of 2 rows (a:1): {key}: the chat template does not render" in str(
        caught.value
    )
    with pytest.raises(DataError, match=f"{key}: the chat template does not render"):
        rows = {"messages": [[*messages, ASKED]], "tools": [tools]}
        task(CONTENTS).prompts(rows, tokenizer(), 99)


def test_what_a_model_need_not_see_is_said_once() -> None:
    dated = [{**ASKED, "id": "x"}, CALLING, FOUND, {**SAID, "mood": "calm"}]
    splits = splits_of([ASKED, SAID], dated, dated)
    assert task().check_rows(splits, tokenizer()) == (
        "train: 'id' of messages is not shown by the chat template (2 of 3 rows)",
        "train: 'tool_call_id' of messages is not shown by the chat template (2 of 3 rows)",
        "train: 'mood' of messages is not shown by the chat template (2 of 3 rows)",
    )
    assert task().check_rows(splits_of([ASKED, SAID]), tokenizer()) == ()


def test_contents_that_a_template_leaves_out_around_tools_are_refused() -> None:
    calls_alone = SHOWS.replace(
        " {{ m.content }}", "{% if not m.tool_calls %} {{ m.content }}{% endif %}"
    )
    speaking = {**CALLING, "content": "see here"}
    with pytest.raises(DataError, match="content beside tool_calls: the chat template"):
        task(calls_alone).check_rows(splits_of([ASKED, speaking]), tokenizer())
    assert not task(calls_alone).check_rows(splits_of([ASKED, CALLING]), tokenizer())
    deaf = SHOWS.replace(" {{ m.content }}", "{% if m.role != 'tool' %} {{ m.content }}{% endif %}")
    with pytest.raises(DataError, match="content of a tool's message: the chat template"):
        task(deaf).check_rows(splits_of([ASKED, CALLING, FOUND, SAID]), tokenizer())


def test_a_row_that_the_template_refuses_is_named() -> None:
    several = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    alone = SHOWS.replace("{% for c in", several + "{% for c in")
    two = {**CALLING, "tool_calls": [CALL, CALL]}
    with pytest.raises(
        DataError, match=r"1 of 2 rows \(a:1\): the chat template refuses .* one call"
    ):
        task(alone).check_rows(splits_of([ASKED, CALLING], [ASKED, two]), tokenizer())
    broken = SHOWS.replace("c.function.name", "c.function.name + 1")
    with pytest.raises(DataError, match="the chat template refuses"):
        task(broken).check_rows(splits_of([ASKED, CALLING]), tokenizer())


PARTS = [{"type": "text", "text": "the dog"}, {"type": "text", "text": "and the horse"}]


def test_parts_are_joined_as_the_template_shows_them() -> None:
    asked = {"role": "user", "content": PARTS}
    lines = CONTENTS.replace(
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{{ m.content | map(attribute='text') | join(' / ') }}{% endif %}",
    )
    words = tokenizer()
    assert ChatTemplate(words, lines).render(talk_of(asked)).count("the dog / and the horse") == 1
    assert "the dogand the horse" in ChatTemplate(words, CONTENTS).render(talk_of(asked))
    repeated = CONTENTS.replace("{{ m.content }}", "{{ m.content | tojson }}")
    assert '"the dogand the horse"' in ChatTemplate(words, repeated).render(talk_of(asked))
    one = talk_of({"role": "user", "content": PARTS[:1]})
    assert one == talk_of({"role": "user", "content": "the dog"})
    assert message_text(talk_of(asked).messages[0]) == "the dogand the horse"


def test_numbers_and_truth_values_are_answers_as_files_write_them() -> None:
    rows = [{"question": "how many", "answer": value} for value in (4, 2.5, True, "yes")]
    said = [to_conversation(row, "question_answer", None).messages[-1]["content"] for row in rows]
    assert said == ["4", "2.5", "true", "yes"]
    with pytest.raises(MessageError, match="output is a list - give a text"):
        to_conversation({"instruction": "x", "output": ["a"]}, "alpaca", None)


def test_special_tokens_in_what_was_said_are_text_and_the_templates_are_its_own() -> None:
    words = tokenizer()
    end = words.eos_token_id
    rows = {
        "messages": [
            [{"role": "user", "content": "say [SEP] [CLS]"}, {**SAID, "content": "[SEP] it"}]
        ]
    }
    found = task(CONTENTS).encode(rows, words, (), 99)
    (ids,), (labels,), (size,) = found["input_ids"], found["labels"], found["bytes"]
    assert ids.count(end) == 2 and labels.count(end) == 1 and labels[-1] == end
    assert size == len(" [SEP] it ")
    (prompt,) = task(CONTENTS).prompts(rows, words, 99)
    assert prompt.count(end) == 1 and ids[: len(prompt)] == prompt
    assert words.decode([i for i in labels if i != -100]).replace(" ", "").startswith("[")


def test_a_template_that_reads_special_tokens_in_a_text_is_refused() -> None:
    cuts = CONTENTS.replace("{{ m.content }}", "{{ m.content.split('[SEP]')[-1] }}")
    talk = talk_of(ASKED, {**SAID, "content": "a [SEP] b"})
    with pytest.raises(DataError, match="acts on special tokens inside a message"):
        list(ChatTemplate(tokenizer(), cuts).render_answers(talk))
    with pytest.raises(DataError, match=r"\(a:0\): the chat template acts on special tokens"):
        task(cuts).check_rows(splits_of([ASKED, {**SAID, "content": "a [SEP] b"}]), tokenizer())


def test_an_end_that_is_no_special_token_may_not_stand_in_a_text() -> None:
    words = tokenizer()
    words.add_tokens(["<|over|>"])
    template = CONTENTS.replace("[SEP]", "<|over|>")
    splits = splits_of([ASKED, SAID], [ASKED, {**SAID, "content": "a <|over|> b"}])
    with pytest.raises(
        DataError, match=r"\(a:1\): a text contains '<\|over\|>', which ends a turn"
    ):
        task(template).check_rows(splits, words)


def test_a_tokenizers_template_for_tools_is_used_where_there_are_tools() -> None:
    words = tokenizer()
    words.chat_template = {"default": CONTENTS, "tool_use": SHOWS}
    template = ChatTemplate(words, None)
    assert "look" in template.render(talk_of(ASKED, tools=TOOLS))
    assert template.render(talk_of(ASKED)) == ChatTemplate(words, CONTENTS).render(talk_of(ASKED))
    assert template.portable_text == CONTENTS


def recipe_of(folder: Path, rows: list[dict[str, Any]], suffix: str = "jsonl") -> Recipe:
    """A recipe that reads such rows from a file."""
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    else:
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = ("lora_tiny", "model=tiny-llama", "task={kind: instruction_tuning, template: plain}")
    return Recipe.load(*said, f"data={{kind: files, path: {folder}, max_length: 128}}")


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_column_of_tools_names_rows_only_where_there_is_one(tmp_path: Path, tools: Any) -> None:
    more = {} if tools is None else {"tools": tools}
    answers = [{**SAID, "content": f"a horse {number}"} for number in range(9)]
    rows = [{"messages": [ASKED, answer], **more} for answer in answers]
    recipe = recipe_of(tmp_path, rows)
    source = recipe.data.resolve()
    wanted = recipe.data.wanted(recipe.task.roles)
    named = [want for want in wanted if want.role != "tools" or tools is not None]
    assert recipe.splits(source).key == recipe.data.key(source, named)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_calls_and_tools_come_from_files_as_they_are_in_each_row(
    tmp_path: Path, suffix: str
) -> None:
    """Arrow would give each call the arguments of all, and each tool the parameters."""
    answers = [{"at": "cloud"}, {"near": {"x": 1}, "far": True}]
    rows = []
    for number in range(9):
        function = {"name": "look", "arguments": answers[number % 2]}
        call = {"type": "function", "function": function}
        properties = {f"p{number % 2}": {"type": "string"}}
        tool = {"type": "function", "function": {"name": "look", "parameters": properties}}
        told = [{**ASKED, "content": f"the dog {number}"}, {**CALLING, "tool_calls": [call]}]
        rows.append({"messages": told, "tools": [tool]})
    recipe = recipe_of(tmp_path, rows, suffix)
    splits = recipe.splits(recipe.data.resolve())
    for read in splits.train:
        row = rows[int(read["row"].split(":")[1])]
        wanted = to_conversation(row, "messages", None)
        assert to_conversation(read, "messages", None) == wanted


def test_messages_of_mixed_spellings_are_read_from_one_file(tmp_path: Path) -> None:
    parts = {"role": "assistant", "content": [{"type": "text", "text": "a"}, "b"]}
    text = {"role": "assistant", "content": "ab"}
    as_text = {"function": {"name": "look", "arguments": json.dumps({"at": "cloud"})}}
    as_object = {"function": {"name": "look", "arguments": {"at": "cloud"}}}
    rows = []
    for number in range(12):
        call = as_text if number % 3 else as_object
        said = [parts, text][number % 2]
        told = [ASKED, {**CALLING, "tool_calls": [call]}, FOUND, said]
        tools = json.dumps(TOOLS) if number % 2 else TOOLS
        rows.append({"messages": json.dumps(told) if number % 4 == 0 else told, "tools": tools})
    recipe = recipe_of(tmp_path, rows)
    splits = recipe.splits(recipe.data.resolve())
    assert recipe.task.label_names(splits) == ()
    talks = [to_conversation(row, "messages", None) for row in splits.train]
    assert {message_text(talk.messages[-1]) for talk in talks} == {"ab"}
    calls = [talk.messages[1]["tool_calls"][0]["function"]["arguments"] for talk in talks]
    assert all(each == {"at": "cloud"} for each in calls)
    assert all(talk.tools == TOOLS for talk in talks)


def test_answers_that_call_tools_are_scored_as_the_template_writes_them() -> None:
    calling = {**CALLING, "content": "a goal"}
    talks = [[ASKED, SAID], [ASKED, CALLING, FOUND, calling]]
    splits = splits_of(*talks)
    plain = task(generate={"rows": 2})
    assert plain.fit_on_train(splits_of(talks[0])) == {"format": "messages"}
    asks = plain.with_fitted_state(plain.fit_on_train(splits))
    rows = {"messages": talks}
    examples = asks.encode(rows, tokenizer(), (), 200)
    wanted = ["a storm near the goal", 'a goal calls look {"at": "cloud"}']
    assert examples["reference"] == wanted
    given = EvalSplit(rows, {**examples, "of": [0, 1]}, ())
    counts = asks.counts([{"generated": text} for text in wanted], given)
    assert counts[:, 3].tolist() == [1.0, 1.0], "an exact match each"
    assert "reference" not in plain.encode(rows, tokenizer(), (), 200)


def test_a_column_of_tools_that_is_none_is_refused_and_not_left_out(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, SAID], "tools": "look"} for _ in range(20)]
    recipe = recipe_of(tmp_path, rows)
    with pytest.raises(DataError, match="column 'tools': is not a list of tools in 20 rows"):
        recipe.splits(recipe.data.resolve())


def test_a_plan_refuses_rows_that_the_template_does_not_show(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, CALLING]} for _ in range(20)]
    with pytest.raises(
        DataError, match=r"rows \(train.jsonl:\d+.*\): tool_calls: the chat template"
    ):
        plan(recipe_of(tmp_path, rows))
