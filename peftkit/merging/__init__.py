"""Merging: an adapter folded into its base's checkpoint, streamed, accounted for and proven."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from peftkit.disk import write_text, writing
from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter, open_adapter
from peftkit.merging.bases import dequantized_layers, quantization_of
from peftkit.merging.companions import base_config, write_card, write_companions
from peftkit.merging.inputs import base_folder, check_base, read_texts
from peftkit.merging.plan import Plan, plan
from peftkit.merging.progress import Progress
from peftkit.merging.proof import Merged, MergeProof, merge_rows, prove
from peftkit.merging.streaming import Written, output_bytes, write_shards
from peftkit.merging.subtracting import check_subtraction, restored, subtracted
from peftkit.merging.tensors import open_checkpoint
from peftkit.record import RunRecord

__all__ = ["MergeProof", "Merged", "merge", "merge_rows"]

SPARE_BYTES = 64 << 20
"""For what stands beside the weights."""


def merge(
    run: RunRecord | Path | str,
    to: Path | str,
    base: Path | str | None = None,
    onto: Literal["trained", "original"] = "trained",
    verify: Path | str | Sequence[str] | None = None,
    compare_bases: bool = False,
    subtract: bool = False,
) -> Merged:
    """Fold the adapter of `run` (a record, a run's folder, an artefact or a plain PEFT folder) into
    its base, as an ordinary checkpoint in the new folder `to`.

    `base` names another place of the base. `onto`: after quantised training, the base as it was
    then, dequantised, or the original one. The result is held against base + adapter on the run's
    held-out rows, or on texts: `verify` is a file or a list of them, or 'off'. `compare_bases`
    measures both bases. `subtract` takes the adapter out of a merged `base` again.

    A process that is killed leaves nothing behind that looks like a result. Raises `RunError` where
    something does not fit, is damaged, or where the result is not what base + adapter say.
    """
    began = time.monotonic()
    adapter = open_adapter(run_folder(run))
    source = base_folder(adapter, base, subtract)
    shards = open_checkpoint(source)
    config = base_config(source)
    check_base(adapter, source, subtract)
    texts = read_texts(verify)
    quantized = quantization_of(adapter) is not None
    again = quantized and onto == "trained" and not subtract
    before = dequantized_layers(adapter, source) if again else {}
    adapter = subtracted(adapter) if subtract else adapter
    planned = plan(adapter, shards, config, before)
    check_effect(adapter, planned)
    if subtract:
        check_subtraction(adapter, planned)
    with beside(Path(to)) as partial:
        seen = written(planned, partial, -1.0 if subtract else 1.0)
        write_companions(adapter, source, planned, partial)
        made = summary(adapter, source, planned, seen, onto if quantized else None)
        made = made.model_copy(update={"path": str(to), "seconds": time.monotonic() - began})
        if subtract:
            made = made.model_copy(update={"restored_difference": restored(adapter, partial)})
        elif verify != "off":
            proof = prove(adapter, source, partial, onto, texts, compare_bases, planned)
            made = made.model_copy(update={"proof": proof})
        conclude(made, partial, adapter, to)
    return made.model_copy(update={"seconds": time.monotonic() - began})


def run_folder(run: RunRecord | Path | str) -> Path:
    """The folder of what is to be merged."""
    if isinstance(run, RunRecord):
        return Path("runs") / run.folder_name
    return Path(run)


def check_effect(adapter: Adapter, planned: Plan) -> None:
    """Refuse an adapter that leaves every weight as it is."""
    folds = [f for o in planned.outputs for f in o.folds if f.parts]
    if folds and all(fold.is_nothing() for fold in folds):
        beside_it = " (only what was trained beside it would)" if adapter.replaced else ""
        raise RunError(
            f"{adapter.folder}: this adapter changes nothing: what it adds to any of {len(folds)} "
            f"layers is zero{beside_it} - it was never trained, or its training did not reach it"
        )
    if not folds and not adapter.replaced:
        raise RunError(f"{adapter.folder}: this adapter changes nothing: it holds no tensors")


@contextmanager
def beside(to: Path) -> Iterator[Path]:
    """A folder beside `to` that takes its place in the end, and goes if something fails."""
    partial = to.with_name(f"{to.name}.partial")
    with writing(to, "--to"):
        if to.exists():
            raise RunError(f"{to}: exists - name a new folder with --to, or move it away")
        to.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(to.with_name(f".{to.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{to}: another process is at work there - wait for it") from None
        try:
            shutil.rmtree(partial, ignore_errors=True)  # a killed process left it
            partial.mkdir()
            try:
                yield partial
                os.rename(partial, to)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def written(
    planned: Plan, folder: Path, sign: float = 1.0, what: str = "merged checkpoint"
) -> Written:
    """The shards, once there is room for them; `what` they are is for the error and the bar."""
    needed = sum(map(output_bytes, planned.outputs)) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder.parent}: {free / 1e9:.1f} GB free, the {what} needs "
            f"{needed / 1e9:.1f} GB - free some space, or name another folder with --to"
        )
    with Progress(what, needed - SPARE_BYTES) as progress:
        return write_shards(planned, folder, sign, progress.advance)


def summary(
    adapter: Adapter,
    base: Path,
    planned: Plan,
    seen: Written,
    onto: Literal["trained", "original"] | None,
) -> Merged:
    """What the merge came to, before it is proven."""
    return Merged(
        path="",
        adapter=str(adapter.folder),
        kind=adapter.kind,
        base=named(adapter, base),
        onto=onto,
        num_bytes=seen.num_bytes,
        copied=seen.copied,
        changed=len(seen.changed),
        unchanged=seen.unchanged,
        dropped=list(planned.dropped),
        untied=planned.config.get("tie_word_embeddings") is False,
        seconds=0.0,
    )


def named(adapter: Adapter, base: Path) -> str:
    """The base's name, as others know it."""
    said: Mapping[str, Any] = adapter.sealed.get("base", {})
    return str(said.get("used") or adapter.config.get("base_model_name_or_path") or base)


def conclude(made: Merged, partial: Path, adapter: Adapter, to: Path | str) -> None:
    """Write what is known beside the weights."""
    config = base_config(partial)
    facts = {"adapter": adapter.kind, "base": made.base, "tensors changed": str(made.changed)}
    if made.proof is not None:
        facts["largest difference of a logit"] = f"{made.proof.largest:.2g}"
    write_card(partial, made.base, f"an adapter ({adapter.kind})", config, facts)
    write_text(partial / "merge.json", made.model_dump_json(indent=1) + "\n")
