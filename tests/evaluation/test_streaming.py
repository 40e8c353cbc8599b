"""Live text: words on a terminal as they come, and what they come to in the end."""

import io
import json
import os
import pty
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaForCausalLM

import peftkit
from peftkit.cli.main import main
from peftkit.evaluation.generation import generate
from peftkit.evaluation.streaming import WordStreamer, hold_back_stop
from peftkit.inference.chat import Chat, converse, prompt_for
from peftkit.tasks.language_modeling.generation_settings import Generation
from support.conversations import CHAT, QUESTIONS, TRANSLATION, made, talk
from support.task_rows import instructed, task_recipe

ASKED = "the dog was near"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a language model."""
    task = {"kind": "instruction_tuning", "template": "plain"}
    recipe = task_recipe(task, instructed, "tiny-llama", "lora", "none")
    steps = {"steps": 4, "threads": 1, "proof": "run", "batch_size": 8, "precision": "fp32"}
    record = peftkit.train(recipe.but(training=steps), root := tmp_path_factory.mktemp("runs"))
    return root / record.folder_name


class Watched(io.TextIOWrapper):
    """A terminal's file that notes what is written, and how often the model had been asked."""

    asked = 0
    notes: list[tuple[str, int]]

    def write(self, text: str) -> int:
        self.notes.append((text, self.asked))
        return super().write(text)


@pytest.fixture
def terminal() -> Iterator[Watched]:
    """A pseudo-terminal."""
    reader, writer = pty.openpty()
    file = Watched(io.FileIO(writer, "w"), write_through=True)

    def count(module: Any, _: Any) -> None:
        file.asked += isinstance(module, LlamaForCausalLM)

    hook = register_module_forward_pre_hook(count)
    assert file.isatty()
    yield file
    hook.remove()
    file.close()
    os.close(reader)


def typed(file: Watched, *arguments: str) -> None:
    """`peftkit predict ARGUMENTS` at the terminal, from now on watched."""
    file.notes, file.asked = [], 0
    with redirect_stdout(file):
        assert main(["predict", *arguments]) == 0


def written(file: Watched) -> str:
    return "".join(text for text, _ in file.notes)


def test_a_single_text_comes_word_by_word_on_a_terminal(run: Path, terminal: Watched) -> None:
    (whole,) = peftkit.predict(run, [ASKED])
    assert len(whole["generated"].split()) > 5, "a toy that says little proves nothing"
    typed(terminal, str(run), ASKED)
    assert written(terminal) == f"{whole['generated']}\t{ASKED}\n"
    times = [asked for text, asked in terminal.notes if text.strip()]
    assert len(set(times)) > 5 and times[0] < 5 and times == sorted(times)


def test_several_texts_and_json_come_at_once(run: Path, terminal: Watched) -> None:
    first, second = peftkit.predict(run, [ASKED, "rain"])
    typed(terminal, str(run), ASKED, "rain")
    lines = [f"{first['generated']}\t{ASKED}\n", f"{second['generated']}\train\n"]
    assert written(terminal) == "".join(lines)
    assert len({asked for _, asked in terminal.notes}) == 1
    typed(terminal, str(run), ASKED, "--json")
    assert json.loads(written(terminal)) == {"prompt": ASKED, **first}
    assert len({asked for _, asked in terminal.notes}) == 1


def test_a_pipe_gets_the_same_line_at_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (whole,) = peftkit.predict(run, [ASKED])
    assert main(["predict", str(run), ASKED]) == 0
    assert capsys.readouterr().out == f"{whole['generated']}\t{ASKED}\n"


def test_a_chat_writes_answers_as_they_come_and_remembers_them(run: Path) -> None:
    talk_with, out = Chat(run, max_new_tokens=6), io.StringIO()
    converse(talk_with, [f"{ASKED}\n", "/reset\n", f"{ASKED}\n", "/quit\n", "never\n"], out, "> ")
    said = talk_with.messages[-1]["content"]
    assert said and [m["role"] for m in talk_with.messages] == ["user", "assistant"]
    assert out.getvalue() == f"> {said}\n> > {said}\n> "
    talk_with.answer("the goal")
    decode = talk_with.loaded.tokenizer.decode
    asked = decode(prompt_for(talk_with.task, talk_with.loaded, talk_with.messages[:3]))
    assert asked.index(ASKED) < asked.index("the goal"), "the last question, behind what was said"


@pytest.mark.parametrize(("name", "task"), [("tiny-llama", CHAT), ("tiny-t5", TRANSLATION)])
def test_the_words_come_to_the_text(name: str, task: str) -> None:
    recipe = talk(name, task)
    model = made(recipe, bare=True)
    rows = QUESTIONS if task == CHAT else {"source": QUESTIONS["question"]}
    for prompt in recipe.task.prompts(rows, model.tokenizer, 64):
        (whole,) = generate(model, [prompt], Generation(max_new_tokens=12), [])
        for stop in ([], whole.split()[3:4], [whole[len(whole) // 2 :][:7]]):
            words: list[str] = []
            how = Generation(max_new_tokens=12, stop=list(filter(None, stop)))
            (text,) = generate(model, [prompt], how, [], None, words.append)
            assert "".join(words) == text.strip()
            assert stop == [] or stop == [""] or len(text) < len(whole)


def test_a_beam_search_shows_nothing_before_it_is_done() -> None:
    recipe = talk("tiny-llama", CHAT)
    model, words = made(recipe, bare=True), list[str]()
    (prompt, *_) = recipe.task.prompts(QUESTIONS, model.tokenizer, 64)
    how = Generation(max_new_tokens=6, num_beams=2)
    assert generate(model, [prompt], how, [], None, words.append)[0] and words == []


def test_what_may_become_a_stop_is_held_back() -> None:
    assert hold_back_stop("a\nQ", ["\nQ:"]) == "a" and hold_back_stop("a", ["b"]) == "a"
    shown: list[str] = []
    words = WordStreamer(None, shown.append, ["\nQ:", "END"])
    for piece in (" a b", " E", "N", "x c\n", "Q", ": d"):
        words.on_finalized_text(piece)
    words.on_finalized_text("", stream_end=True)
    assert shown == ["a b", " ENx c"]
