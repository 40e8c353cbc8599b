"""Exporting: a folder that serves a run's result as it is, by transformers code of its own."""

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
    """Write the result of `run` (a record, or a run's folder) into the new folder `to`, with a
    `load.py` that opens it by transformers and torch alone.

    `base`: the base's weights are copied, or named with their sha256 and checked when the folder is
    loaded. After quantized training they are copied as they were then, dequantized. The folder,
    opened by its own code in a fresh process without peftkit, is held against the run on its
    held-out rows, or on texts: `verify` is a file or a list of them, or 'off'.

    A process that is killed leaves nothing behind that looks like a result. Raises `RunError` where
    something does not fit, is damaged, or where the folder does not say what the run says.
    """
    began = time.monotonic()
    folder = RunDir.open(run_folder(run))
    texts = read_texts(verify)
    check_task(folder)
    with new_folder(Path(to)) as partial:
        from peftkit.exporting.weights import weights_of

        source, trained, rows = looked_at(folder, texts, verify != "off")
        weights = weights_of(folder, source, trained, base)
        check_base(weights.adapter, Path(source.location), subtract=False)
        seen = weights.write(partial)
        write_beside(folder, trained, weights, partial)
        made = summary(folder, trained, weights, seen)
        if rows is not None:
            made = made.model_copy(
                update={"proof": proven(folder, weights, trained, rows, partial)}
            )
        made = made.model_copy(update={"path": str(to), "seconds": time.monotonic() - began})
        write_text(partial / "export.json", made.model_dump_json(indent=1) + "\n")
    return made


def check_task(run: RunDir) -> None:
    """Refuse a task whose answers `load.py` cannot give."""
    task = run.recipe.task
    if task.peft_type not in ("SEQ_CLS", "CAUSAL_LM"):
        raise RunError(
            f"{run.path}: 'task: {task.kind}' cannot be exported: load.py answers for classifiers "
            "and language models alone - predict from the run with peftkit predict"
        )


def looked_at(
    run: RunDir, texts: Sequence[str] | None, verify: bool
) -> "tuple[Source, Trained, Rows | Answers | None]":
    """The run's base, what was trained, and what the run's model says of the rows to compare."""
    from peftkit.exporting.answers import Answers
    from peftkit.exporting.proof import Rows
    from peftkit.exporting.trained import Trained
    from peftkit.inference.predictor import base_of_run, load_run

    recipe, assembled, names = load_run(run.path)
    kind = Rows if recipe.task.trains_head else Answers
    rows = kind(run, recipe, texts) if verify else None
    if rows is not None:
        rows.ask(recipe, assembled, names)
    return base_of_run(run), Trained(recipe, assembled), rows


def write_beside(run: RunDir, trained: "Trained", weights: "Weights", to: Path) -> None:
    """Write all but the base's weights: configuration, tokenizer, what was trained, code, card."""
    from peftkit.merging.metadata_files import write_metadata_files

    base = weights.said()
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
    """What the export came to, before it is proven."""
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
    """The proof that the folder says what the run says."""
    from peftkit.exporting.proof import prove

    elsewhere = Path(weights.source.location) if weights.held == "reference" else None
    names: list[str] = run.description()["names"]
    return prove(folder, elsewhere, rows, names, trained.dtype, weights.dequantized_from)
