"""Settings of text generation: decoding, the number of test rows, and the grader."""

import re
from collections.abc import Callable
from typing import Any

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from peftkit.registry import Settings

OF_A_GRADER = ("grader", "grader_timeout", "samples")
"""Settings that say nothing, and are no part of a run's name, where no command judges."""


class Generation(Settings):
    """Settings of text generation, and for how many test rows at the end of a run."""

    rows: PositiveInt = 200
    """Test rows, drawn by `seed`, whose text is generated and scored."""
    max_new_tokens: PositiveInt = 128
    """Tokens an answer has at most."""
    min_new_tokens: NonNegativeInt = 0
    """Tokens an answer has at least."""
    num_beams: PositiveInt = 1
    """Hypotheses of a beam search; 1: the most probable token each time."""
    temperature: NonNegativeFloat = 0.0
    """0: nothing is left to chance; else tokens are drawn at this temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Tokens are drawn from the most probable ones that have this share together."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end an answer, besides the end tokens."""
    seed: int = 0
    """Draws the rows, and tokens at a temperature."""
    untrained_baseline: bool = True
    """Whether the base without training generates them too, to be compared with."""
    few_shot_examples: PositiveInt | None = None
    """Answered rows of train, drawn by `seed`, which the untrained base too is shown first."""
    extract: str | None = None
    """Regular expression for final answers: `exact_match` compares what its first group finds."""
    grader: list[str] | None = Field(default=None, min_length=1)
    """Your own command, [python, grade.py], that is run on each text: it reads JSON (row, inputs,
    reference, text) and ends with 0 where the text passes, with 1 where it fails. Off by default:
    what generated code may do is for the command to confine."""
    grader_timeout: PositiveFloat = 10.0
    """Seconds after which the command is killed and the text has failed."""
    samples: PositiveInt = 1
    """Texts a row that are judged, for pass@k; they differ only at a temperature."""

    @field_validator("extract")
    @classmethod
    def _is_a_pattern(cls, said: str | None) -> str | None:
        try:
            re.compile(said or "")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        return said

    @model_validator(mode="after")
    def _samples_are_of_use(self) -> Self:
        if self.samples > 1 and self.grader is None:
            raise ValueError(f"samples: {self.samples} texts a row need a grader - set grader")
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"samples: {self.samples} texts a row are all the same at temperature 0 "
                "- set temperature, as 0.8, or samples=1"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before_there_were_judges(self, plain: Callable[[Any], dict[str, Any]]) -> Any:
        said = plain(self)
        return {k: v for k, v in said.items() if self.grader is not None or k not in OF_A_GRADER}
