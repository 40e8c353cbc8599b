"""Proof: what a merge came to, and that its checkpoint says what base and adapter say."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from peftkit.errors import RunError
from peftkit.merging.mixing import Mix
from peftkit.merging.verification.greedy import GreedyTexts
from peftkit.registry import Settings
from peftkit.runtime.distributed import subprocess_environment

if TYPE_CHECKING:
    from peftkit.merging.adapters import Adapter
    from peftkit.merging.outputs import Plan

ARITHMETIC = {"float32": 1e-4, "bfloat16": 1e-1}
"""Of the largest logit: what sums in another order may move a logit by, in the type that both
models are computed in. In fp32 it was 1e-6 to 1e-5 on tiny models and on real ones."""
MARGIN = 3.0
"""How many times as far as another rounding of the same weights a logit may move. Measured in bf16
and fp16: 0.6 to 1.3 times on tiny Llamas (the mean 0.9 to 1.05), 0.3 to 1.6 on tiny BERTs and
MiniLM, which have few logits. An adapter smaller than the steps loses less than that (SmolLM2: 0.1
to 0.4): there, the proof sees less too."""


class Difference(Settings):
    """How far two models' logits are apart."""

    largest: float
    mean: float
    largest_logit: float
    """The first model's largest logit, in size."""


class AnswersCompared(Settings):
    """What a run says of held-out rows, and its merged folder opened by transformers alone: labels
    with their probabilities, or texts."""

    compared: int
    """Rows that both answered."""
    equal: int
    """Rows with the same label, or with the same text that ends alike."""
    near_ties: int
    """Rows whose answers differ where two were as good but for rounding."""
    read_otherwise: int
    """Rows left out: they hold special tokens, which transformers cannot be told to read as text in
    this model, or words that its tokenizer drops."""
    different: list[int]
    """The numbers of the other rows that were answered otherwise, from 1."""


class MergeProof(Settings):
    """The merged checkpoint held against base + adapter."""

    largest: float
    """Largest difference of a logit."""
    mean: float
    """Mean difference of the logits."""
    largest_logit: float
    """The largest logit of base + adapter, in size."""
    tolerance: float
    """What the largest difference may be."""
    mean_tolerance: float
    """What the mean difference may be."""
    rounding: Difference | None = None
    """How far another rounding of the same weights moves the logits; null where none was rounded to
    16 bits, or the models were too large to be compared in fp32."""
    rows: int
    """Texts whose logits were compared."""
    texts: str
    """Where they come from."""
    computed_in: str
    """The type that both were computed in."""
    metric: str | None
    """The task's score; null where there are no labels."""
    before: float | None
    """Of base + adapter."""
    after: float | None
    """Of the merged checkpoint."""
    scored_rows: int
    answers: AnswersCompared | None = None
    """How the run's answers compare with the folder's own; null where there is no run, or where its
    answers are spans of a text."""
    greedy: GreedyTexts | None = None
    """Of a language model: how the run's texts compare; null where none were generated."""
    onto_trained: Difference | None = None
    """`compare_bases`: base + adapter as in training, and merged onto that base."""
    onto_original: Difference | None = None
    """`compare_bases`: base + adapter as in training, and merged onto the original base."""


class Merged(Settings):
    """What a merge came to; `merge.json` in its folder."""

    path: str
    """The folder of the merged checkpoint."""
    adapter: str
    kind: str
    """PEFT's method, or the strategy."""
    mix: Mix | None = None
    """Of several adapters: how they became one."""
    headless: list[str] = Field(default_factory=list)
    """The adapters whose trained heads were left out, for that of another."""
    base: str
    onto: Literal["trained", "original"] | None
    """After quantized training: the base that it was merged onto."""
    num_bytes: int
    """Of tensors."""
    copied: int
    """Tensors that are the base's, bit for bit."""
    changed: int
    """Tensors that the adapter changed or brought."""
    unchanged: list[str]
    """Tensors that were trained, or acted on by nothing, and are the base's still."""
    dropped: list[str]
    """The base's tensors of a head that another took the place of."""
    opens_as: str | None = None
    """The class of transformers that opens it, all of whose tensors are there; null where the
    configuration names none that transformers has."""
    unexpected: list[str] = Field(default_factory=list)
    """Tensors of the base's that this class leaves aside, in the base as well."""
    untied: bool
    """Whether the output layer was parted from the embeddings."""
    seconds: float
    proof: MergeProof | None = None
    """Null: verification was off."""
    restored_difference: float | None = None
    """`subtract`: the largest difference of a weight from the original base."""


def merge_rows(made: Merged) -> list[dict[str, str]]:
    """The table that a merge ends with."""
    rows = [
        ("merged", f"{made.path} ({made.num_bytes / 2**20:,.1f} MiB, {made.seconds:.1f} s)"),
        ("base", made.base + (f", as it was {made.onto}" if made.onto else "")),
        ("tensors", f"{made.changed} changed, {made.copied} copied bit for bit"),
    ]
    if made.mix is not None:
        rows.insert(1, ("mixed", said_of(made.mix)))
    if made.headless:
        rows.append(("left out", f"the heads of {', '.join(made.headless)}"))
    if made.unchanged:
        rows.append(("not changed", f"{len(made.unchanged)} ({', '.join(made.unchanged[:3])} ...)"))
    if made.dropped:
        rows.append(("left out", f"the base's old head ({', '.join(made.dropped[:3])})"))
    if made.unexpected:
        some = ", ".join(made.unexpected[:3])
        rows.append(("left aside", f"by {made.opens_as}, as in the base: {some}"))
    if made.untied:
        rows.append(("untied", "the output layer from the embeddings; the configuration says so"))
    if made.restored_difference is not None:
        rows.append(("restored", f"to within {made.restored_difference:.2g} of the base"))
    return [{"what": what, "value": value} for what, value in [*rows, *proof_rows(made.proof)]]


def said_of(mix: Mix) -> str:
    """The mix in words."""
    pairs = zip(mix.weights, mix.adapters, strict=True)
    found = f"{mix.method} of {', '.join(f'{w:g} x {name}' for w, name in pairs)}"
    settings = {"density": mix.density, "seed": mix.seed}
    given = [f"{name} {value:g}" for name, value in settings.items() if value is not None]
    return f"{found} ({', '.join(given)})" if given else found


def proof_rows(proof: MergeProof | None) -> list[tuple[str, str]]:
    """The part of the table that the proof gives."""
    if proof is None:
        return [("verified", "no")]
    said = (
        f"largest {proof.largest:.2g}, mean {proof.mean:.2g} "
        f"(allowed {proof.tolerance:.2g} and {proof.mean_tolerance:.2g})"
    )
    rows = [("logits differ", f"{said}, on {proof.rows} of {proof.texts}")]
    if (found := proof.answers) is not None:
        what = f"{found.equal} of {found.compared} as the run's"
        ties = f", {found.near_ties} at a near tie" if found.near_ties else ""
        left = f", {found.read_otherwise} hold what it cannot read" if found.read_otherwise else ""
        rows.append(("answers by transformers alone", f"{what}{ties}{left}"))
    if (texts := proof.greedy) is not None:
        what = f"{texts.equal} of {texts.prompts} the same to the letter, with the same ends"
        ties = f", {texts.near_ties} part at a near tie" if texts.near_ties else ""
        rows.append(("texts", f"{what}{ties} ({texts.ended} end by themselves)"))
    if proof.before is not None and proof.after is not None:
        scores = f"{proof.before:.4f} before, {proof.after:.4f} after (n={proof.scored_rows})"
        rows.append((str(proof.metric), scores))
    for name, other in (("trained", proof.onto_trained), ("original", proof.onto_original)):
        if other is not None:
            what = f"largest {other.largest:.2g}, mean {other.mean:.2g} from the trained function"
            rows.append((f"onto {name}", what))
    return rows


def prove(
    adapter: "Adapter",
    base: Path,
    merged: Path,
    onto: str,
    texts: Sequence[str] | None,
    compare_bases: bool,
    planned: "Plan",
) -> MergeProof:
    """Compare in a fresh process.

    Raises `RunError` where the difference is more than rounding explains, or nothing can be loaded.
    """
    spec = {
        "adapters": [
            str((one.run.path if one.run else one.folder).resolve()) for one in adapter.single
        ],
        "mix": adapter.mix.model_dump(mode="json") if adapter.mix else None,
        "base": str(base.resolve()),
        "merged": str(merged.resolve()),
        "onto": onto,
        "texts": list(texts) if texts is not None else None,
        "compare_bases": compare_bases,
        "rounded": {o.name: o.dtype for o in planned.outputs if o.computed},
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
    }
    proof = judged(asked(spec, merged))
    if not (proof.largest <= proof.tolerance and proof.mean <= proof.mean_tolerance):  # NaN is not
        raise RunError(
            f"the merged checkpoint does not say what base and adapter say: in {proof.rows} texts "
            f"a logit differs by {proof.largest:.3g} (mean {proof.mean:.3g}), more than rounding "
            f"explains ({proof.tolerance:.3g}, mean {proof.mean_tolerance:.3g}); it was removed - "
            "name the base that the adapter was trained on with --base"
        )
    if proof.answers is not None and (different := proof.answers.different):
        rows = ", ".join(map(str, different))
        raise RunError(
            f"the merged folder does not answer as the run does: transformers alone, by the "
            f"folder's tokenizer and configurations, says something else of {len(different)} of "
            f"{proof.answers.compared} held-out rows (row {rows}), though the weights are right; "
            "it was removed - predict from the run with peftkit predict, or say --verify off"
        )
    return proof


def judged(found: dict[str, Any]) -> MergeProof:
    """What was found, and what it may be."""
    largest, mean = tolerances(found["computed_in"], found["largest_logit"], found["rounding"])
    return MergeProof(**found, tolerance=largest, mean_tolerance=mean)


def tolerances(
    computed_in: str, largest_logit: float, rounding: Mapping[str, float] | None
) -> tuple[float, float]:
    """How far a logit may move, and all in the mean: what sums in another order do, and what
    rounding does."""
    slack = ARITHMETIC[computed_in] * max(1.0, float(largest_logit))
    moved = rounding or {"largest": 0.0, "mean": 0.0}
    return slack + MARGIN * moved["largest"], slack + MARGIN * moved["mean"]


def asked(spec: dict[str, Any], merged: Path) -> dict[str, Any]:
    """What the other process found."""
    path = merged / "verify.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "peftkit.merging.verification.verify", str(path)],
        capture_output=True,
        text=True,
        env=subprocess_environment(),
    )
    path.unlink()
    if done.returncode:
        last = done.stderr.strip().removeprefix("error: ")[-2000:]
        raise RunError(
            f"the merged checkpoint could not be verified, and was removed: {last} - mend that, or "
            "say --verify off"
        )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
