"""Merging: an adapter folded into its base's checkpoint, streamed, accounted for and proven."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from peftkit.deprecation import accept_earlier
from peftkit.errors import RunError
from peftkit.merging.adapters import Adapter, open_adapter
from peftkit.merging.bases import dequantized_layers, quantization_of
from peftkit.merging.checkpoint.tensors import open_checkpoint
from peftkit.merging.inputs import check_base, read_texts
from peftkit.merging.metadata_files import base_config, write_card, write_companions
from peftkit.merging.mixing import Method, Mix, mix_of, silent
from peftkit.merging.outputs import Plan
from peftkit.merging.plan import plan
from peftkit.merging.several import common_base, left_out, together
from peftkit.merging.streaming import Written, output_bytes, write_shards
from peftkit.merging.subtracting import check_subtraction, restored, subtracted
from peftkit.merging.verification.completeness import Loaded, checking
from peftkit.merging.verification.proof import Merged, MergeProof, merge_rows, prove, said_of
from peftkit.progress import ProgressBar
from peftkit.records.record import RunRecord, run_folder
from peftkit.storage.atomic_files import settle, write_text, writing

__all__ = ["MergeProof", "Merged", "Mix", "merge", "merge_rows"]

What = RunRecord | Path | str
"""What names something to merge."""
SPARE_BYTES = 64 << 20
"""For what stands beside the weights."""


@accept_earlier(head_of="head_from")
def merge(
    run: What | Sequence[What],
    to: Path | str,
    base: Path | str | None = None,
    onto: Literal["trained", "original"] = "trained",
    verify: Path | str | Sequence[str] | None = None,
    compare_bases: bool = False,
    subtract: bool = False,
    weights: Sequence[float] | None = None,
    method: Method | None = None,
    density: float | None = None,
    seed: int | None = None,
    head_from: What | None = None,
) -> Merged:
    """Fold the adapter of `run` (a record, a run's folder, an artifact or a plain PEFT folder), or
    those of several, into their base, as an ordinary checkpoint in the new folder `to`.

    `base` names another place of the base. `onto`: after quantized training, the base as it was
    then, dequantized, or the original one. The result is held against base + adapter on the run's
    held-out rows, or on texts: `verify` is a file or a list of them, or 'off'. `compare_bases`
    measures both bases. `subtract` takes the adapter out of a merged `base` again.
    Of several, each one's difference is multiplied with its weight (1) and put together by `method`
    ('sum'; `Mix` says how): `density` (0.5) is the share of elements kept, `seed` (0) decides what
    is dropped by chance. `head_from` names the one whose trained head is taken.

    A killed process leaves nothing that looks like a result. Raises `RunError` for what does not
    fit or is damaged, and for a result that is not what base + adapter say.
    """
    began = time.monotonic()
    folders = folders_of(run)
    head = None if head_from is None else run_folder(head_from)
    mix = mix_of(folders, weights, method, density, seed, head)
    members = [open_adapter(folder) for folder in folders]
    source = common_base(members, base, subtract)
    shards = open_checkpoint(source)
    adapter = members[0] if mix is None else together(members, mix, onto, shards)
    for member in adapter.single:
        check_base(member, source, subtract)
    texts = read_texts(verify)
    quantized = any(quantization_of(member) is not None for member in adapter.single)
    again = quantized and onto == "trained" and not subtract
    before = dequantized_layers(adapter, source) if again else {}
    adapter = subtracted(adapter) if subtract else adapter
    planned = plan(adapter, shards, base_config(source), before)
    check_effect(adapter, planned)
    if subtract:
        check_subtraction(adapter, planned)
    with beside(Path(to)) as partial:
        whole = write_companions(adapter, source, planned, partial)
        with checking(whole, planned, planned.dropped if subtract else ()) as found:
            seen = written(planned, partial, -1.0 if subtract else 1.0)
        made = summary(adapter, source, planned, seen, found[0], onto if quantized else None)
        made = made.model_copy(update={"path": str(to), "seconds": time.monotonic() - began})
        if subtract:
            made = made.model_copy(update={"restored_difference": restored(adapter, partial)})
        elif verify != "off":
            proof = prove(adapter, source, partial, onto, texts, compare_bases, planned)
            made = made.model_copy(update={"proof": proof})
        conclude(made, partial, adapter, to)
    return made.model_copy(update={"seconds": time.monotonic() - began})


def folders_of(run: What | Sequence[What]) -> list[Path]:
    """The folders of all that is to be merged."""
    if isinstance(run, (RunRecord, Path, str)):
        return [run_folder(run)]
    if not run:
        raise RunError("nothing to merge - name a run, an artifact or a PEFT adapter's folder")
    return [run_folder(one) for one in run]


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
    if adapter.mix is not None and (none := silent(adapter.mix, folds)):
        raise RunError(
            f"{none[0]}: this adapter changes nothing, all it adds is zero - leave it out"
        )


@contextmanager
def beside(to: Path) -> Iterator[Path]:
    """A folder beside `to` that takes its place in the end, and goes if something fails.

    What is in it is on the disk itself before it does: a rename can outlive a power cut that the
    bytes behind it did not, and would then make a checkpoint of zeros look finished.
    """
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
                for path in [*partial.rglob("*"), partial]:
                    settle_folder(path) if path.is_dir() else settle(path)
                os.rename(partial, to)
                settle_folder(to.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def settle_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    with ProgressBar(what, "bytes").start(needed - SPARE_BYTES) as progress:
        return write_shards(planned, folder, sign, progress.advance)


def summary(
    adapter: Adapter,
    base: Path,
    planned: Plan,
    seen: Written,
    found: Loaded,
    onto: Literal["trained", "original"] | None,
) -> Merged:
    """What the merge came to, before it is proven."""
    return Merged(
        path="",
        adapter=", ".join(str(member.folder) for member in adapter.single),
        kind=", ".join(dict.fromkeys(member.kind for member in adapter.single)),
        mix=adapter.mix,
        headless=left_out(adapter),
        base=named(adapter, base),
        onto=onto,
        num_bytes=seen.num_bytes,
        copied=seen.copied,
        changed=len(seen.changed),
        unchanged=seen.unchanged,
        dropped=list(planned.dropped),
        opens_as=found.model,
        unexpected=found.unexpected,
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
    facts = {"adapter": made.kind, "base": made.base, "tensors changed": str(made.changed)}
    what = f"an adapter ({made.kind})"
    if made.mix is not None:
        what = f"{len(made.mix.weights)} adapters ({made.kind})"
        facts["put together by"] = said_of(made.mix)
    if made.proof is not None:
        facts["largest difference of a logit"] = f"{made.proof.largest:.2g}"
    write_card(partial, made.base, what, config, facts)
    write_text(partial / "merge.json", made.model_dump_json(indent=1) + "\n")
