"""Chat with the model of a finished run; answers are printed while they are generated."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from peftkit.errors import RecipeError, RunError
from peftkit.evaluation.generation import generate, max_prompt_length
from peftkit.evaluation.streaming import OnText, TextPrinter
from peftkit.inference.predictor import load_run
from peftkit.loading.model import LoadedModel
from peftkit.records.run_dir import RunDir
from peftkit.tasks.language_modeling.base import LanguageModeling
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.text.conversations import assistant_message, user_message
from peftkit.text.messages import Message

HELP = "/reset starts a new conversation, /quit or end of input exits, /help prints this"
NO_LIMIT = 10**9
"""A maximum length that truncates nothing."""


def run_chat(options: Any) -> None:
    """`peftkit chat`: answer each line of the input, typed or piped."""
    temperature = options.temperature
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise RecipeError(f"--temperature should be 0 or more (got {temperature})")
    names = ("max_new_tokens", "temperature", "seed")
    chat = Chat(options.run, options.system, **{name: getattr(options, name) for name in names})
    if options.json:
        for line in filter(str.strip, sys.stdin):
            turn = {"prompt": line.strip(), "generated": chat.answer(line.strip())}
            print(json.dumps(turn), flush=True)
        return
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP, file=sys.stderr)
    converse(chat, sys.stdin, sys.stdout, "> " if interactive else "")


class Chat:
    """A conversation with a model; `generation` overrides settings of the run's `generate`.

    Raises `RunError` if the run is not finished or was trained for another task.
    """

    def __init__(self, folder: Path, system: str | None = None, **generation: Any) -> None:
        recipe = RunDir.open(folder).recipe
        task = recipe.task.text_generator
        if task is None or not task.is_conversation:
            raise RunError(
                f"{folder}: cannot chat, it was trained for 'task: {recipe.task.kind}' - "
                "use peftkit predict, or train task=instruction_tuning"
            )
        self.recipe, self.loaded, _ = load_run(folder)
        self.task = task
        self.system = system
        changes = {key: value for key, value in generation.items() if value is not None}
        self.generation = (task.generation or Generation()).model_copy(update=changes)
        self.messages: list[Message] = []
        self.num_dropped = 0
        """Messages that no longer fit in the context."""

    def answer(self, text: str, show: OnText | None = None) -> str:
        """The model's answer to `text`, added to the conversation; `show` receives its words as
        they are generated. The oldest turns are dropped if the context is too small for them."""
        self.messages.append(user_message(text))
        prompt = self._prompt()
        tokenizer = self.loaded.tokenizer
        stop_ids = self.task.stop_ids(tokenizer)
        (text,) = generate(self.loaded, [prompt], self.generation, stop_ids, None, show)
        self.messages.append(assistant_message(text.strip()))
        return text.strip()

    def reset(self) -> None:
        """Start a new conversation."""
        self.messages.clear()

    def _prompt(self) -> list[int]:
        room = max_prompt_length(self.recipe, self.loaded, self.generation)
        while True:
            prompt = prompt_for(self.task, self.loaded, self._conversation())
            if len(prompt) <= room or len(self.messages) == 1:
                return prompt[-room:]
            del self.messages[:2]
            self.num_dropped += 2

    def _conversation(self) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages]


def prompt_for(task: LanguageModeling, loaded: LoadedModel, messages: list[Message]) -> list[int]:
    """The token ids of a conversation up to the next answer."""
    return task.prompts({"messages": [messages]}, loaded.tokenizer, NO_LIMIT)[0]


def converse(chat: Chat, lines: Iterable[str], out: TextIO, prompt: str) -> None:
    """Print an answer to each line until /quit; `prompt` is printed before each line is read."""
    print(prompt, end="", file=out, flush=True)
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
        elif text.startswith("/"):
            print(HELP, file=out)
        elif text:
            before = chat.num_dropped
            live = TextPrinter(out)
            answer = chat.answer(text, live)
            print(live.rest(answer), file=out, flush=True)
            if chat.num_dropped > before:
                print("(the oldest turns no longer fit and were dropped)", file=out)
        print(prompt, end="", file=out, flush=True)
