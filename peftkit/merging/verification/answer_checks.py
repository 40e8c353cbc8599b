"""Questions: what a run and its merged folder are both asked, by the run's task."""

from pathlib import Path

from peftkit.loading.model import load_tokenizer
from peftkit.merging.verification.answers import AnswerCheck, Columns, LabelAnswers, RunSide
from peftkit.merging.verification.tag_answers import TagAnswers
from peftkit.merging.verification.text_answers import TextAnswers
from peftkit.records.run_dir import RunDir

ROWS = 8
"""Held-out rows that are answered."""


def answer_check_for(run: RunDir, base: Path, columns: Columns) -> AnswerCheck | None:
    """What the run on the `base` can be asked of the first rows in `columns`.

    None where its answers are spans of a text: transformers 5.23 has no pipeline that finds them.
    """
    description = run.description()
    recipe = run.recipe.with_fitted_state(description.get("fitted_state", {}))
    task = recipe.task
    some = {name: list(column[:ROWS]) for name, column in columns.items()}
    side = RunSide(recipe, load_tokenizer(str(base), task), some, description["names"])
    if task.text_generator is not None:
        return TextAnswers(side, task.text_generator)
    if task.peft_type == "TOKEN_CLS":
        return TagAnswers(side)
    return LabelAnswers(side) if task.peft_type == "SEQ_CLS" else None
