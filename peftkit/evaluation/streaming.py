"""Output of generated text while it is being generated."""

from collections.abc import Callable, Sequence
from typing import Any, TextIO

from transformers import TextStreamer

OnText = Callable[[str], None]
"""Called with each new part of a text."""


class TextPrinter:
    """Prints the parts of one text to `out`."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.began = False

    def __call__(self, words: str) -> None:
        """Print the next part."""
        self.began = True
        print(words, end="", file=self.out, flush=True)

    def rest(self, text: str) -> str:
        """Return what is still to be printed of the whole text: all of it if nothing was
        printed."""
        return "" if self.began else text


class WordStreamer(TextStreamer):
    """Passes text to `show` as its tokens are generated, such that the parts add up to the final
    text: without prompt, special tokens, stop texts and surrounding white space."""

    def __init__(self, tokenizer: Any, show: OnText, stops: Sequence[str]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show, self.stops = show, stops
        self.said = self.shown = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Handle the next decoded text."""
        self.said += text
        whole = stream_end or any(stop in self.said for stop in self.stops)
        known = self.said if whole else hold_back_stop(self.said, self.stops)
        sure = cut_at_stop(known, self.stops).strip()
        if len(sure) > len(self.shown):
            self.show(sure[len(self.shown) :])
            self.shown = sure


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop text."""
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found, default=len(text))]


def hold_back_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text without an ending that may become a stop text."""
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(begun, default=0)]
