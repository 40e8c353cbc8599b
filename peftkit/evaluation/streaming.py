"""Live text: what a model says, written word by word while it is generated."""

from collections.abc import Callable, Sequence
from typing import Any, TextIO

from transformers import TextStreamer

OnText = Callable[[str], None]
"""What is told the next words of a text."""


class TextPrinter:
    """Writes the words of one text to `out` as they come."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.began = False

    def __call__(self, words: str) -> None:
        """The next words."""
        self.began = True
        print(words, end="", file=self.out, flush=True)

    def rest(self, text: str) -> str:
        """What of the whole text is still to be written: all of it where no words came."""
        return "" if self.began else text


class WordStreamer(TextStreamer):
    """Tells `show` a text in words as its tokens come, as it is when it is whole: without the
    prompt, special tokens, what begins a stop, and the white space around it."""

    def __init__(self, tokenizer: Any, show: OnText, stops: Sequence[str]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show, self.stops = show, stops
        self.said = self.shown = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """The next words."""
        self.said += text
        whole = stream_end or any(stop in self.said for stop in self.stops)
        known = self.said if whole else hold_back_stop(self.said, self.stops)
        sure = cut_at_stop(known, self.stops).strip()
        if len(sure) > len(self.shown):
            self.show(sure[len(self.shown) :])
            self.shown = sure


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found, default=len(text))]


def hold_back_stop(text: str, stops: Sequence[str]) -> str:
    """The text without an end that may become a stop."""
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(begun, default=0)]
