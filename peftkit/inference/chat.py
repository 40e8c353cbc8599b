"""Chat: a conversation with a finished run's model, turn by turn, its answers as they come."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from peftkit.errors import RecipeError, RunError
from peftkit.evaluation.generation import generate, room_for_prompts
from peftkit.evaluation.streaming import Live, Show
from peftkit.inference.predictor import load_run
from peftkit.loading.model import LoadedModel
from peftkit.records.run_dir import RunDir
from peftkit.tasks.language_modeling.generation_settings import Generation
from peftkit.tasks.language_modeling.instruction_tuning import Instructions
from peftkit.text.conversations import assistant, user
from peftkit.text.messages import Message

HELP = "/reset forgets what was said, /quit ends (as the end of the input does), /help says this"
WHOLE = 10**9
"""A length that cuts nothing."""


def chat(options: Any) -> None:
    """`peftkit chat`: answer what is typed, or what is piped in, a line a turn."""
    heat = options.temperature
    if heat is not None and not (math.isfinite(heat) and heat >= 0):
        raise RecipeError(f"--temperature should be 0 or more (got {heat})")
    how = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "seed")}
    talk = Chat(options.run, options.system, **how)
    if options.json:
        for line in filter(str.strip, sys.stdin):
            said = {"prompt": line.strip(), "generated": talk.say(line.strip())}
            print(json.dumps(said), flush=True)
        return
    typed = sys.stdin.isatty()
    if typed:
        print(HELP, file=sys.stderr)
    converse(talk, sys.stdin, sys.stdout, "> " if typed else "")


class Chat:
    """A model and what was said so far."""

    def __init__(self, folder: Path, system: str | None = None, **how: Any) -> None:
        """Raises `RunError` where the run is not finished, or was made for another task."""
        recipe = RunDir.open(folder).recipe
        if not isinstance(recipe.task, Instructions):
            raise RunError(
                f"{folder}: was trained for 'task: {recipe.task.kind}', which is no conversation - "
                "use peftkit predict, or train task=instructions"
            )
        self.recipe, self.assembled, _ = load_run(folder)
        self.task = recipe.task
        self.system = system
        given = {key: value for key, value in how.items() if value is not None}
        self.how = (recipe.task.generate or Generation()).model_copy(update=given)
        self.messages: list[Message] = []
        self.forgotten = 0
        """Messages that the model has no room for any more."""

    def say(self, text: str, show: Show | None = None) -> str:
        """The model's answer, which it remembers, its words told to `show` as they come; the oldest
        turns are forgotten where there is no room for them."""
        self.messages.append(user(text))
        prompt = self._prompt()
        tokenizer = self.assembled.tokenizer
        ends = self.task.stop_ids(tokenizer)
        (said,) = generate(self.assembled, [prompt], self.how, ends, None, show)
        said = said.strip()
        self.messages.append(assistant(said))
        return said

    def reset(self) -> None:
        """Forget what was said."""
        self.messages.clear()

    def _prompt(self) -> list[int]:
        room = room_for_prompts(self.recipe, self.assembled, self.how)
        while True:
            prompt = prompt_for(self.task, self.assembled, self._told())
            if len(prompt) <= room or len(self.messages) == 1:
                return prompt[-room:]
            del self.messages[:2]
            self.forgotten += 2

    def _told(self) -> list[Message]:
        said = [{"role": "system", "content": self.system}] if self.system else []
        return [*said, *self.messages]


def prompt_for(task: Instructions, assembled: LoadedModel, messages: list[Message]) -> list[int]:
    """The tokens of a conversation up to where the next answer begins."""
    return task.prompts({"messages": [messages]}, assembled.tokenizer, WHOLE)[0]


def converse(chat: Chat, lines: Iterable[str], out: TextIO, prompt: str) -> None:
    """Answer each line to `out` until /quit or the last; `prompt` stands before what is typed."""
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
            before = chat.forgotten
            live = Live(out)
            said = chat.say(text, live)
            print(live.rest(said), file=out, flush=True)
            if chat.forgotten > before:
                print("(the oldest turns no longer fit and are forgotten)", file=out)
        print(prompt, end="", file=out, flush=True)
