"""Verifying: the merged checkpoint held against base + adapter, in a process of its own.

`python -m peftkit.merging.verification.verify SPEC.json` prints what was found, as JSON, in
its last line.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError, RunError
from peftkit.hub.source import Source
from peftkit.loading.model import load_tokenizer
from peftkit.merging.adapters import Adapter, open_adapter
from peftkit.merging.inference_settings import read_settings
from peftkit.merging.mixing import Mix
from peftkit.merging.model_classes import is_language_model
from peftkit.merging.multiple_adapters import join
from peftkit.merging.verification.answer_checks import answer_check_for
from peftkit.merging.verification.answers import Columns
from peftkit.merging.verification.expected import expected
from peftkit.merging.verification.models import answers, class_of, padded, whole
from peftkit.merging.verification.proof import tolerances
from peftkit.merging.verification.rounding import moved_by_rounding
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import threads_of_rank
from peftkit.storage.safetensors_files import open_checkpoint
from peftkit.tasks.base import Task

COMPARED_ROWS = 64
"""Rows whose logits are compared."""
SCORED_ROWS = 256
"""Rows that are scored before and after."""
MOST_LOGITS = 1 << 26
"""Of a language model, what is compared: numbers, which take a quarter of a GiB."""
ROWS_A_BATCH = 8
LONGEST = 256
"""Tokens of a text that are read."""
BUILT_IN = (
    "The river rose after three days of rain, and the bridge was closed to traffic.",
    "She asked how many apples were left; he counted eleven and a half.",
    "What is the capital of France? It is a city on the Seine.",
    "A merge must not change a single answer: 12 * 7 = 84, and 84 / 7 = 12.",
    "def add(first, second):\n    return first + second",
    "The film was long, but its last hour made up for all of it.",
    "Die Katze schläft auf dem Sofa, während es draußen schneit.",
    "In 1969 the crew returned with 21.5 kilograms of rock and dust.",
)
"""What is read where neither a run nor a file gives rows."""


def main(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the comparison found."""
    merged, base, onto = Path(spec["merged"]), Path(spec["base"]), spec["onto"]
    adapter = adapter_of(spec)
    torch.set_num_threads(spec["threads"] or threads_of_rank("auto"))
    dtype = comparing_type(adapter, merged)
    columns = held_out_columns(adapter.run) if adapter.run and spec["texts"] is None else None
    rows, scored, source = rows_to_compare(adapter, base, merged, spec["texts"], columns)
    evaluator = Evaluator(adapter, merged, rows, scored)
    answer_check = answer_check_for(adapter.run, base, columns) if adapter.run and columns else None

    with torch.no_grad():
        before = evaluator.look(
            lambda: expected(adapter, base, merged, onto, dtype),
            then=lambda model, _: answer_check.query(model) if answer_check else None,
        )
        computed_in = str(dtype).removeprefix("torch.")
        found: dict[str, Any] = {"computed_in": computed_in, "metric": evaluator.metric}

        def compared(model: nn.Module, rounding: Moved) -> dict[str, Any]:
            logit = float(before.answers.abs().max())
            allowed, _ = tolerances(computed_in, logit, rounding)
            return answer_check.compare_with(model, merged, allowed) if answer_check else {}

        types = spec["rounded"] if dtype == torch.float32 else {}
        after = evaluator.look(lambda: whole(evaluator.loader, merged, dtype), types, compared)
        found |= {**difference(before.answers, after.answers), "rows": len(rows), "texts": source}
        found |= {"rounding": after.rounding, **after.then}
        found |= {"before": before.score, "after": after.score, "scored_rows": len(scored)}
        if spec["compare_bases"]:
            other = "original" if onto == "trained" else "trained"
            apart = evaluator.look(lambda: expected(adapter, base, merged, other, dtype))
            trained, original = (before, apart) if onto == "trained" else (apart, after)
            found["onto_original"] = difference(trained.answers, original.answers)
            if onto == "trained":
                found["onto_trained"] = difference(trained.answers, after.answers)
    return found


def adapter_of(spec: Mapping[str, Any]) -> Adapter:
    """The adapter that was merged, or several as one."""
    members = [open_adapter(Path(path)) for path in spec["adapters"]]
    if spec["mix"] is None:
        return members[0]
    mix, shards = Mix.model_validate(spec["mix"]), open_checkpoint(Path(spec["base"]))
    return join(members, mix, spec["onto"], shards)


def comparing_type(adapter: Adapter, merged: Path) -> torch.dtype:
    """fp32 where the model fits twice into what memory is free, else bf16.

    Raises `RunError` where that is too little for several adapters, whose differences would be lost
    in bf16.
    """
    size = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = (3 + 2 * len(adapter.members)) * size
    if needed < free:
        return torch.float32
    if adapter.members:
        raise RunError(
            f"several adapters are put together in memory for it, which takes {needed / 1e9:.1f} "
            f"GB, and {free / 1e9:.1f} GB are free"
        )
    return torch.bfloat16


def rows_to_compare(
    adapter: Adapter,
    base: Path,
    merged: Path,
    texts: Sequence[str] | None,
    columns: Columns | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Rows to compare, rows to score, and where they come from: the `columns` of a run's."""
    if columns is not None:
        assert adapter.run is not None
        rows = held_out(adapter.run, load_tokenizer(str(base), adapter.task), columns)
        few = few_enough(rows[:COMPARED_ROWS], merged)
        return few, rows[:SCORED_ROWS], "the run's held-out rows"
    chosen, tokenizer = list(BUILT_IN if texts is None else texts), load_tokenizer(str(merged))
    encoded = [dict(tokenizer(text, truncation=True, max_length=LONGEST)) for text in chosen]
    kept = [
        {k: v for k, v in row.items() if k in ("input_ids", "token_type_ids")} for row in encoded
    ]
    source = "built-in texts" if texts is None else "the given texts"
    return [row for row in kept if row["input_ids"]], [], source


def few_enough(rows: list[dict[str, Any]], merged: Path) -> list[dict[str, Any]]:
    """The first rows, so many that a language model's logits of them can be held twice."""
    config = read_settings(merged / "config.json")
    if not is_language_model(config):
        return rows
    lengths = accumulate(len(row["input_ids"]) for row in rows)
    most = MOST_LOGITS // int(config.get("vocab_size") or 1)
    return rows[: max(1, sum(length <= most for length in lengths))]


def held_out(run: RunDir, tokenizer: Any, columns: Columns) -> list[dict[str, Any]]:
    """The rows of a run's held-out split, encoded."""
    recipe = run.recipe.with_fitted_state(run.description().get("fitted_state", {}))
    encoded = recipe.task.encode(
        columns, tokenizer, run.description()["names"], recipe.data.max_length
    )
    count = len(encoded["input_ids"])
    return [{key: column[i] for key, column in encoded.items()} for i in range(count)]


def held_out_columns(run: RunDir) -> dict[str, list[Any]]:
    """The first rows of the run's test split, or of train where it has none, by column, as the task
    reads them."""
    description = run.description()
    recipe = run.recipe.with_fitted_state(description.get("fitted_state", {}))
    data = Source.model_validate(description["data"])
    if not Path(data.location).exists():
        data = recipe.data.resolve()
    splits = recipe.splits(data)
    split = splits.test if len(splits.test) else splits.train
    chosen = split.select(range(min(SCORED_ROWS, len(split))))
    return {name: list(chosen[name]) for name in chosen.column_names}


Moved = dict[str, float] | None
"""How far rounding moves answers."""


class Looked(NamedTuple):
    """What a model was found to say."""

    answers: Tensor
    score: float | None
    rounding: Moved
    then: Any


class Evaluator:
    """Looks at one model after another, with the same rows."""

    def __init__(
        self,
        adapter: Adapter,
        merged: Path,
        rows: Sequence[Mapping[str, Any]],
        scored: Sequence[Mapping[str, Any]],
    ) -> None:
        self.rows, self.scored, self.adapter = rows, scored, adapter
        self.task, self.loader = adapter.task, class_of(merged)
        self.pad_id = int(load_tokenizer(str(merged)).pad_token_id or 0)
        self.metric = (
            self.task.headline if scored and self.task and answers_plainly(self.task) else None
        )

    def look(
        self,
        load: Callable[[], nn.Module],
        types: Mapping[str, str] | None = None,
        then: Callable[[nn.Module, Moved], Any] | None = None,
    ) -> Looked:
        """The model's answers, its score, and how far rounding moves them, where tensors of `types`
        were rounded, and what `then` finds; the model is gone afterwards."""
        model = load()
        found = self.answers(model)
        score = self.score(model)
        others = moved_by_rounding(model, types, self.answers) if types else ()
        moves = [difference(found, other) for other in others]
        names = ("largest", "mean", "largest_logit") if moves else ()
        moved = {n: max(move[n] for move in moves) for n in names} or None
        more = then(model, moved) if then else None
        del model
        gc.collect()
        return Looked(found, score, moved, more)

    def answers(self, model: nn.Module) -> Tensor:
        """All that the model says of the rows that are compared."""
        return torch.cat([answers(model, batch).flatten() for batch in self.batches(self.rows)])

    def batches(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Tensor]]:
        """The rows, padded."""
        for first in range(0, len(rows), ROWS_A_BATCH):
            yield padded(rows[first : first + ROWS_A_BATCH], self.pad_id)

    def score(self, model: nn.Module) -> float | None:
        """The task's headline score of the rows that are scored."""
        if self.task is None or self.metric is None:
            return None
        predictions = torch.cat([answers(model, batch) for batch in self.batches(self.scored)])
        labels = [row["labels"] for row in self.scored]
        return headline(self.task, predictions, labels, self.adapter.manifest["labels"])


def headline(
    task: Task,
    logits: Tensor,
    labels: Sequence[Any],
    names: Sequence[str],
    rows: Mapping[str, Sequence[Any]] | None = None,
) -> float | None:
    """The task's headline score of `logits`; `rows` where it looks at them."""
    from peftkit.tasks.base import EvalSplit, Predictions

    outputs = task.outputs(logits, torch.tensor(labels), [1] * len(labels))
    given = EvalSplit(rows or {}, {}, names, resamples=0, fitted_state=task.fitted_state)
    return task.score(Predictions(labels, outputs, None), given).scores[task.headline].value


def answers_plainly(task: Task) -> bool:
    """Whether a row's answer is what a plain forward pass says of it: one an example, which the
    model reads where it always does."""
    return task.reading == "example" and not task.markers()


def difference(one: Tensor, other: Tensor) -> dict[str, float]:
    """Largest and mean difference of logits, and the largest logit beside them."""
    if one.shape != other.shape:
        raise SystemExit(f"error: the answers have other shapes: {one.shape} and {other.shape}")
    apart = (one - other).abs()
    found = {"largest": apart.max(), "mean": apart.mean(), "largest_logit": one.abs().max()}
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    try:
        print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
    except PeftkitError as error:
        sys.exit(f"error: {error}")
