"""Facts: what an export came to, as it is written, returned and printed."""

from typing import Literal

from peftkit.merging.verification.proof import MergeProof, proof_rows
from peftkit.registry import Settings


class Exported(Settings):
    """What an export came to; `export.json` in its folder."""

    path: str
    """The folder that was made."""
    run: str
    strategy: str
    base: str
    base_identity: str
    """`sha256:<hex>` of its content, or `revision:<commit>` of the hub's."""
    held: Literal["embedded", "referred"]
    """Whether the base's weights lie in the folder, or are named there."""
    dequantized_from: str | None
    """How training held the base, where the folder holds it dequantized as it was then."""
    num_bytes: int
    """Of the base's tensors in the folder."""
    copied: int
    """The base's tensors that are in the folder bit for bit."""
    changed: int
    """Those that training changed, or that were dequantized."""
    attached: int
    """Tensors that `load.py` attaches: what was trained, and the head."""
    mergeable: bool
    """Whether `peftkit merge` gives an ordinary checkpoint of the same run."""
    versions: dict[str, str]
    """The libraries that the proof ran with."""
    seconds: float
    proof: MergeProof | None = None
    """The folder, opened by its own `load.py`, held against the run; null: it was off."""


def export_rows(made: Exported) -> list[dict[str, str]]:
    """The table that an export ends with."""
    size = f"{made.num_bytes / 2**20:,.1f} MiB" if made.held == "embedded" else "no base weights"
    rows = [("exported", f"{made.path} ({size}, {made.seconds:.1f} s)"), ("base", base_row(made))]
    if made.held == "embedded":
        what = f"{made.copied} of the base's copied bit for bit, {made.changed} changed"
        rows.append(("tensors", f"{what}, {made.attached} attached by load.py"))
    rows += proof_rows(made.proof)
    if made.mergeable:
        what = f"peftkit merge {made.run} --to DIR gives an ordinary checkpoint, without load.py"
        rows.append(("simpler", what))
    return [{"what": what, "value": value} for what, value in rows]


def base_row(made: Exported) -> str:
    """The base and how the folder holds it."""
    if made.held == "referred":
        return f"{made.base}, referred to by {made.base_identity[:24]}"
    if made.dequantized_from is not None:
        return f"{made.base}, dequantized from the {made.dequantized_from} of the training"
    return made.base
