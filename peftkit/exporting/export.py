"""Exports a run to a folder with its own loading code, which needs transformers and torch only."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.exporting.card import card, mergeable, needed
from peftkit.exporting.facts import Exported, export_rows
from peftkit.merging.inputs import check_base, read_texts
from peftkit.merging.merge import new_folder
from peftkit.records.record import RunRecord, run_folder
from peftkit.records.run_dir import RunDir
from peftkit.storage.atomic_files import write_text
from peftkit.text import special_token_text

if TYPE_CHECKING:
    from peftkit.exporting.answers import Answers
    from peftkit.exporting.proof import Rows
    from peftkit.exporting.trained import Trained
    from peftkit.exporting.weights import Weights
    from peftkit.hub.source import Source
    from peftkit.merging.streaming import Written
    from peftkit.merging.verification.proof import MergeProof

__all__ = ["Exported", "export", "export_rows"]


def export(
    run: RunRecord | Path | str,
    to: Path | str,
    base: Literal["embed", "reference"] = "embed",
    verify: Path | str | Sequence[str] | None = None,
) -> Exported:
    """Export `run` (a record, or a run's directory) to the new folder `to`, with a `load.py` that
    loads it with transformers and torch alone.

    `base`: whether the base's weights are copied, or referenced by their sha256, which `load.py`
    checks. After quantized training they are copied as they were in training, dequantized. The
    folder, loaded by its own code in a new process without peftkit, is compared with the run on its
    held-out rows, or on texts: `verify` is a file or a list of them, or 'off'.

    An interrupted export leaves no folder `to`. Raises `RunError` for inputs that do not fit or are
    damaged, and if the folder's predictions differ from the run's.
    """
    start = time.monotonic()
    folder = RunDir.open(run_folder(run))
    texts = read_texts(verify)
    check_task(folder)
    with new_folder(Path(to)) as partial:
        from peftkit.exporting.weights import weights_of

        source, trained, rows = read_run(folder, texts, verify != "off")
        weights = weights_of(folder, source, trained, base)
        check_base(weights.adapter, Path(source.location), subtract=False)
        seen = weights.write(partial)
        write_files(folder, trained, weights, partial)
        made = summary(folder, trained, weights, seen)
        if rows is not None:
            made = made.model_copy(
                update={"proof": proven(folder, weights, trained, rows, partial)}
            )
        made = made.model_copy(update={"path": str(to), "seconds": time.monotonic() - start})
        write_text(partial / "export.json", made.model_dump_json(indent=1) + "\n")
    return made


def check_task(run: RunDir) -> None:
    """Raise `RunError` for a task that `load.py` cannot predict."""
    task = run.recipe.task
    if task.peft_type not in ("SEQ_CLS", "CAUSAL_LM"):
        raise RunError(
            f"{run.path}: 'task: {task.kind}' cannot be exported: load.py supports classifiers and "
            "language models only - use peftkit predict with the run"
        )


def read_run(
    run: RunDir, texts: Sequence[str] | None, verify: bool
) -> "tuple[Source, Trained, Rows | Answers | None]":
    """The run's base, its trained tensors, and its predictions of the rows to compare."""
    from peftkit.exporting.answers import Answers
    from peftkit.exporting.proof import Rows
    from peftkit.exporting.trained import Trained
    from peftkit.inference.predictor import base_of_run, load_run

    recipe, loaded, names = load_run(run.path)
    kind = Rows if recipe.task.trains_head else Answers
    rows = kind(run, recipe, texts) if verify else None
    if rows is not None:
        rows.query(recipe, loaded, names)
    return base_of_run(run), Trained(recipe, loaded), rows


def write_files(run: RunDir, trained: "Trained", weights: "Weights", to: Path) -> None:
    """Write configuration, tokenizer, trained tensors, code and card."""
    from peftkit.merging.metadata_files import write_metadata_files

    base = weights.location()
    write_metadata_files(weights.adapter, Path(weights.source.location), weights.planned, to)
    trained.write(to, run.recipe, base)
    for path in code_files(run.recipe, trained):
        shutil.copyfile(path, to / path.name)
    for kind, source in trained.code().items():
        write_text(to / f"attach_{kind}.py", source)
    text = card(run.record, run.recipe, base, sorted(trained.code()), trained.prompts)
    write_text(to / "README.md", text)


def code_files(recipe: Recipe, trained: "Trained") -> list[Path]:
    """The files of code that the folder needs, without those that attach modules."""
    wanted = {
        "load.py": True,
        "marked.py": recipe.task.pools_markers,
        "generate.py": trained.prompts is not None,
    }
    here = Path(__file__)
    names = [here.with_name(name) for name, is_wanted in wanted.items() if is_wanted]
    return [*names, Path(special_token_text.__file__)]


def summary(run: RunDir, trained: "Trained", weights: "Weights", seen: "Written") -> Exported:
    """The summary of an export before it is verified."""
    strategy = run.recipe.strategy
    return Exported(
        path="",
        run=str(run.path),
        strategy=strategy.kind,
        base=weights.source.used,
        base_identity=weights.source.identity,
        held="embedded" if weights.held == "embed" else "referred",
        dequantized_from=weights.dequantized_from,
        num_bytes=seen.num_bytes,
        copied=seen.copied,
        changed=len(seen.changed),
        attached=len(trained.tensors),
        mergeable=mergeable(run.recipe),
        versions=needed(),
        seconds=0.0,
    )


def proven(
    run: RunDir, weights: "Weights", trained: "Trained", rows: "Rows | Answers", folder: Path
) -> "MergeProof":
    """The proof that the folder predicts what the run does."""
    from peftkit.exporting.proof import prove

    elsewhere = Path(weights.source.location) if weights.held == "reference" else None
    names: list[str] = run.description()["names"]
    return prove(folder, elsewhere, rows, names, trained.dtype, weights.dequantized_from)
