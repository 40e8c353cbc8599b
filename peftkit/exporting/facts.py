"""The summary of an export, as it is saved, returned and printed."""

from typing import Literal

from peftkit.merging.verification.proof import MergeProof, proof_rows
from peftkit.registry import Settings


class Exported(Settings):
    """The summary of an export; `export.json` in its folder."""

    path: str
    """The folder that was made."""
    run: str
    strategy: str
    base: str
    base_identity: str
    """`sha256:<hex>` of its content, or `revision:<commit>` on the hub."""
    held: Literal["embedded", "referred"]
    """Whether the base's weights are in the folder, or only referenced."""
    dequantized_from: str | None
    """How the base was quantized in training, if the folder has it dequantized."""
    num_bytes: int
    """The size of the base's tensors in the folder."""
    copied: int
    """The base's tensors that were copied bit for bit."""
    changed: int
    """The base's tensors that training changed, or that were dequantized."""
    attached: int
    """Tensors that `load.py` attaches: the strategy's and the head's."""
    mergeable: bool
    """Whether `peftkit merge` gives an ordinary checkpoint of the same run."""
    versions: dict[str, str]
    """The versions of the libraries that the folder was verified with."""
    seconds: float
    proof: MergeProof | None = None
    """The folder, loaded by its `load.py`, compared with the run; null: verification was off."""


def export_rows(made: Exported) -> list[dict[str, str]]:
    """The table that is printed after an export."""
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
    """The base, and how it is in the folder."""
    if made.held == "referred":
        return f"{made.base}, referenced by {made.base_identity[:24]}"
    if made.dequantized_from is not None:
        return f"{made.base}, dequantized from the {made.dequantized_from} of the training"
    return made.base
