"""Merges adapters into their base: an ordinary checkpoint, streamed and verified."""

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
from peftkit.merging.dequantization import dequantized_weights, quantization_of
from peftkit.merging.inputs import check_base, read_texts
from peftkit.merging.metadata_files import base_config, write_card, write_metadata_files
from peftkit.merging.mixing import Method, Mix, make_mix, zero_adapters
from peftkit.merging.multiple_adapters import common_base, headless_adapters, join
from peftkit.merging.outputs import MergePlan
from peftkit.merging.plan import plan_merge
from peftkit.merging.streaming import Written, output_size, write_shards
from peftkit.merging.unmerging import check_subtraction, drop_head, restored_difference
from peftkit.merging.verification.completeness import Loaded, check_while_writing
from peftkit.merging.verification.proof import Merged, MergeProof, describe_mix, merge_rows, prove
from peftkit.progress import ProgressBar
from peftkit.records.record import RunRecord, run_folder
from peftkit.storage.atomic_files import explain_disk_errors, sync_to_disk, write_text
from peftkit.storage.safetensors_files import open_checkpoint

__all__ = ["MergeProof", "Merged", "Mix", "merge", "merge_rows"]

Mergeable = RunRecord | Path | str
"""A run's record or directory, an artifact or a PEFT folder."""
SPARE_BYTES = 64 << 20
"""Disk space for the files beside the weights."""


@accept_earlier(head_of="head_from")
def merge(
    run: Mergeable | Sequence[Mergeable],
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
    head_from: Mergeable | None = None,
) -> Merged:
    """Merge the adapter of `run` (a record, a run's directory, an artifact or a plain PEFT folder),
    or several adapters, into their base, as an ordinary checkpoint in the new folder `to`.

    `base` is the base's folder, if it has moved. `onto`: after quantized training, the base as it
    was in training, dequantized, or the original one. The result is compared with base + adapter on
    the run's held-out rows, or on texts: `verify` is a file or a list of them, or 'off'.
    `compare_bases` measures both bases. `subtract` subtracts the adapter from a merged `base`.
    Several adapters' differences are multiplied by their `weights` (1) and combined by `method`
    ('sum'; see `Mix`): `density` (0.5) is the share of elements kept, `seed` (0) decides what is
    dropped at random. `head_from` names the adapter whose trained head is kept.

    An interrupted merge leaves no folder `to`. Raises `RunError` for inputs that do not fit or are
    damaged, and if the result's predictions differ from those of base + adapter.
    """
    start = time.monotonic()
    folders = adapter_folders(run)
    head = None if head_from is None else run_folder(head_from)
    mix = make_mix(folders, weights, method, density, seed, head)
    members = [open_adapter(folder) for folder in folders]
    source = common_base(members, base, subtract)
    shards = open_checkpoint(source)
    adapter = members[0] if mix is None else join(members, mix, onto, shards)
    for member in adapter.all_members:
        check_base(member, source, subtract)
    texts = read_texts(verify)
    quantized = any(quantization_of(member) is not None for member in adapter.all_members)
    dequantize = quantized and onto == "trained" and not subtract
    base_deltas = dequantized_weights(adapter, source) if dequantize else {}
    adapter = drop_head(adapter) if subtract else adapter
    plan = plan_merge(adapter, shards, base_config(source), base_deltas)
    check_effect(adapter, plan)
    if subtract:
        check_subtraction(adapter, plan)
    with new_folder(Path(to)) as partial:
        config = write_metadata_files(adapter, source, plan, partial)
        with check_while_writing(config, plan, plan.dropped if subtract else ()) as found:
            written = write_weights(plan, partial, -1.0 if subtract else 1.0)
        merged = summarize(adapter, source, plan, written, found[0], onto if quantized else None)
        known: dict[str, Any] = {"path": str(to)}
        if subtract:
            known["restored_difference"] = restored_difference(adapter, partial)
        elif verify != "off":
            known["proof"] = prove(adapter, source, partial, onto, texts, compare_bases, plan)
        merged = merged.model_copy(update={**known, "seconds": time.monotonic() - start})
        write_summary(merged, partial)
    return merged.model_copy(update={"seconds": time.monotonic() - start})


def adapter_folders(run: Mergeable | Sequence[Mergeable]) -> list[Path]:
    """The folders of all adapters to merge."""
    if isinstance(run, (RunRecord, Path, str)):
        return [run_folder(run)]
    if not run:
        raise RunError("nothing to merge - name a run, an artifact or a PEFT adapter's folder")
    return [run_folder(each) for each in run]


def check_effect(adapter: Adapter, plan: MergePlan) -> None:
    """Raise `RunError` for an adapter that changes no weight."""
    deltas = [delta for output in plan.outputs for delta in output.deltas if delta.tensors]
    if deltas and all(delta.is_zero() for delta in deltas):
        others = " (only the weights trained with it would change)" if adapter.replaced else ""
        raise RunError(
            f"{adapter.folder}: this adapter changes nothing: its difference is zero in all of "
            f"{len(deltas)} tensors{others} - train it, or check that its training reached it"
        )
    if not deltas and not adapter.replaced:
        raise RunError(
            f"{adapter.folder}: this adapter changes nothing: it has no tensors - save it again"
        )
    if adapter.mix is not None and (zero := zero_adapters(adapter.mix, deltas)):
        raise RunError(
            f"{zero[0]}: this adapter changes nothing: its difference is zero - leave it out"
        )


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `to` at the end, and deleted if there is an error.

    Its content is synced to disk first: after a power failure the rename can survive without the
    content, and a checkpoint of zeros would look complete.
    """
    partial = to.with_name(f"{to.name}.partial")
    with explain_disk_errors(to, "--to"):
        if to.exists():
            raise RunError(f"{to}: exists - name a new folder with --to, or move it away")
        to.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(to.with_name(f".{to.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{to}: another process is writing it - wait for it") from None
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a killed process
            partial.mkdir()
            try:
                yield partial
                for path in [*partial.rglob("*"), partial]:
                    sync_folder(path) if path.is_dir() else sync_to_disk(path)
                os.rename(partial, to)
                sync_folder(to.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Sync the names in `folder` to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_weights(
    plan: MergePlan, folder: Path, sign: float = 1.0, name: str = "merged checkpoint"
) -> Written:
    """Write the shards, if there is space for them; `name` is for messages and the progress bar."""
    needed = sum(map(output_size, plan.outputs)) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder.parent}: {free / 1e9:.1f} GB free, the {name} needs {needed / 1e9:.1f} GB - "
            "free some space, or name another folder with --to"
        )
    with ProgressBar(name, "bytes").start(needed - SPARE_BYTES) as progress:
        return write_shards(plan, folder, sign, progress.advance)


def summarize(
    adapter: Adapter,
    base: Path,
    plan: MergePlan,
    written: Written,
    found: Loaded,
    onto: Literal["trained", "original"] | None,
) -> Merged:
    """The summary of a merge before it is verified."""
    return Merged(
        path="",
        adapter=", ".join(str(member.folder) for member in adapter.all_members),
        kind=", ".join(dict.fromkeys(member.method for member in adapter.all_members)),
        mix=adapter.mix,
        headless=headless_adapters(adapter),
        base=base_name(adapter, base),
        onto=onto,
        num_bytes=written.num_bytes,
        copied=written.copied,
        changed=len(written.changed),
        unchanged=written.unchanged,
        dropped=list(plan.dropped),
        opens_as=found.model,
        unexpected=found.unexpected,
        untied=plan.config.get("tie_word_embeddings") is False,
        seconds=0.0,
    )


def base_name(adapter: Adapter, base: Path) -> str:
    """The base's name on the hub, or its folder."""
    recorded: Mapping[str, Any] = adapter.manifest.get("base", {})
    return str(recorded.get("used") or adapter.config.get("base_model_name_or_path") or base)


def write_summary(merged: Merged, folder: Path) -> None:
    """Write the model card and `merge.json`."""
    facts = {"adapter": merged.kind, "base": merged.base, "tensors changed": str(merged.changed)}
    what = f"an adapter ({merged.kind})"
    if merged.mix is not None:
        what = f"{len(merged.mix.weights)} adapters ({merged.kind})"
        facts["combined by"] = describe_mix(merged.mix)
    if merged.proof is not None:
        facts["largest difference of a logit"] = f"{merged.proof.largest:.2g}"
    write_card(folder, merged.base, what, base_config(folder), facts)
    write_text(folder / "merge.json", merged.model_dump_json(indent=1) + "\n")
