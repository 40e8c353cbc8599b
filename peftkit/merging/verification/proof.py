"""The summary of a merge, and the proof that its checkpoint predicts what base + adapter do."""

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
    from peftkit.merging.outputs import MergePlan

ARITHMETIC = {"float32": 1e-4, "bfloat16": 1e-1}
"""How much a logit may differ because sums have another order, relative to the largest logit, by
the type that both models are computed in. In fp32, 1e-6 to 1e-5 was measured."""
MARGIN = 3.0
"""How many times as much as with another rounding of the same weights a logit may differ. Measured
in bf16 and fp16: 0.6 to 1.3 times on tiny Llamas (the mean 0.9 to 1.05), 0.3 to 1.6 on tiny BERTs
and MiniLM, which have few logits. An adapter smaller than the rounding steps differs less (SmolLM2:
0.1 to 0.4), and the proof detects less there."""


class Difference(Settings):
    """The differences of two models' logits."""

    largest: float
    mean: float
    largest_logit: float
    """The first model's largest absolute logit."""


class AnswerComparison(Settings):
    """A run's answers to held-out rows, compared with those of the merged folder, loaded by
    transformers alone: labels with their probabilities, or texts."""

    compared: int
    """Rows that were compared."""
    equal: int
    """Rows with the same label, or the same text and end."""
    near_ties: int
    """Rows whose answers differ between two that are equal within rounding."""
    tokenized_differently: int
    """Rows that were skipped: they have special tokens, which transformers cannot read as text with
    this tokenizer, or words that it drops."""
    different: list[int]
    """The numbers of the rows with different answers, from 1."""


class MergeProof(Settings):
    """The merged checkpoint compared with base + adapter."""

    largest: float
    """Largest difference of a logit."""
    mean: float
    """Mean difference of the logits."""
    largest_logit: float
    """The largest absolute logit of base + adapter."""
    tolerance: float
    """The limit of the largest difference."""
    mean_tolerance: float
    """The limit of the mean difference."""
    rounding: Difference | None = None
    """The difference with another rounding of the same weights; null if none was rounded to 16
    bits, or the models were too large to compare in fp32."""
    rows: int
    """TextAnswers whose logits were compared."""
    texts: str
    """Where they are from."""
    computed_in: str
    """The type that both models were computed in."""
    metric: str | None
    """The task's metric; null if there are no labels."""
    before: float | None
    """The score of base + adapter."""
    after: float | None
    """The score of the merged checkpoint."""
    scored_rows: int
    answers: AnswerComparison | None = None
    """How the run's answers compare with the folder's; null without a run, and for question
    answering."""
    greedy: GreedyTexts | None = None
    """How the texts of a language model compare; null if none were generated."""
    onto_trained: Difference | None = None
    """`compare_bases`: base + adapter as in training, and merged onto that base."""
    onto_original: Difference | None = None
    """`compare_bases`: base + adapter as in training, and merged onto the original base."""


class Merged(Settings):
    """The summary of a merge; `merge.json` in its folder."""

    path: str
    """The folder of the merged checkpoint."""
    adapter: str
    kind: str
    """PEFT's method, or the strategy's kind."""
    mix: Mix | None = None
    """How several adapters were combined."""
    headless: list[str] = Field(default_factory=list)
    """The adapters whose trained heads were dropped."""
    base: str
    onto: Literal["trained", "original"] | None
    """The base that it was merged onto, after quantized training."""
    num_bytes: int
    """The size of all tensors."""
    copied: int
    """Tensors copied from the base, bit for bit."""
    changed: int
    """Tensors that the adapter changed or added."""
    unchanged: list[str]
    """Tensors that the adapter has, and that are equal to the base's."""
    dropped: list[str]
    """The base's tensors of a head that was replaced."""
    opens_as: str | None = None
    """The class of transformers that loads it, with none of its tensors missing; null if the
    configuration names none."""
    unexpected: list[str] = Field(default_factory=list)
    """Tensors of the base that this class does not use."""
    untied: bool
    """Whether the output layer is no longer tied to the embeddings."""
    seconds: float
    proof: MergeProof | None = None
    """Null: verification was off."""
    restored_difference: float | None = None
    """`subtract`: the largest difference of a weight from the original base."""


def merge_rows(merged: Merged) -> list[dict[str, str]]:
    """The table that is printed after a merge."""
    rows = [
        ("merged", f"{merged.path} ({merged.num_bytes / 2**20:,.1f} MiB, {merged.seconds:.1f} s)"),
        ("base", merged.base + (f", as it was {merged.onto}" if merged.onto else "")),
        ("tensors", f"{merged.changed} changed, {merged.copied} copied bit for bit"),
    ]
    if merged.mix is not None:
        rows.insert(1, ("combined", describe_mix(merged.mix)))
    if merged.headless:
        rows.append(("heads dropped", f"those of {', '.join(merged.headless)}"))
    if merged.unchanged:
        rows.append(
            ("unchanged", f"{len(merged.unchanged)} ({', '.join(merged.unchanged[:3])} ...)")
        )
    if merged.dropped:
        rows.append(("dropped", f"the base's head ({', '.join(merged.dropped[:3])})"))
    if merged.unexpected:
        some = ", ".join(merged.unexpected[:3])
        rows.append(("not used", f"by {merged.opens_as}, as in the base: {some}"))
    if merged.untied:
        rows.append(("untied", "the output layer from the embeddings, also in the configuration"))
    if merged.restored_difference is not None:
        rows.append(("restored", f"to within {merged.restored_difference:.2g} of the base"))
    return [{"what": what, "value": value} for what, value in [*rows, *proof_rows(merged.proof)]]


def describe_mix(mix: Mix) -> str:
    """The mix in words, for the table and the model card."""
    pairs = zip(mix.weights, mix.adapters, strict=True)
    found = f"{mix.method} of {', '.join(f'{w:g} x {name}' for w, name in pairs)}"
    settings = {"density": mix.density, "seed": mix.seed}
    given = [f"{name} {value:g}" for name, value in settings.items() if value is not None]
    return f"{found} ({', '.join(given)})" if given else found


def proof_rows(proof: MergeProof | None) -> list[tuple[str, str]]:
    """The rows of the table about the proof."""
    if proof is None:
        return [("verified", "no")]
    differences = (
        f"largest {proof.largest:.2g}, mean {proof.mean:.2g} "
        f"(allowed {proof.tolerance:.2g} and {proof.mean_tolerance:.2g})"
    )
    rows = [("logits differ", f"{differences}, on {proof.rows} of {proof.texts}")]
    if (found := proof.answers) is not None:
        what = f"{found.equal} of {found.compared} equal to the run's"
        ties = f", {found.near_ties} near ties" if found.near_ties else ""
        skipped = found.tokenized_differently
        left = f", {skipped} skipped: tokenized differently" if skipped else ""
        rows.append(("answers by transformers alone", f"{what}{ties}{left}"))
    if (texts := proof.greedy) is not None:
        what = f"{texts.equal} of {texts.prompts} identical, with the same end"
        ties = f", {texts.near_ties} differ at a near tie" if texts.near_ties else ""
        rows.append(("texts", f"{what}{ties} ({texts.ended} end with an end token)"))
    if proof.before is not None and proof.after is not None:
        scores = f"{proof.before:.4f} before, {proof.after:.4f} after (n={proof.scored_rows})"
        rows.append((str(proof.metric), scores))
    for name, other in (("trained", proof.onto_trained), ("original", proof.onto_original)):
        if other is not None:
            what = f"largest {other.largest:.2g}, mean {other.mean:.2g} from the trained model"
            rows.append((f"onto {name}", what))
    return rows


def prove(
    adapter: "Adapter",
    base: Path,
    merged: Path,
    onto: str,
    texts: Sequence[str] | None,
    compare_bases: bool,
    plan: "MergePlan",
) -> MergeProof:
    """The proof, computed in a new process.

    Raises `RunError` if rounding does not explain the difference, or a model cannot be loaded.
    """
    spec = {
        "adapters": [
            str((one.run.path if one.run else one.folder).resolve()) for one in adapter.all_members
        ],
        "mix": adapter.mix.model_dump(mode="json") if adapter.mix else None,
        "base": str(base.resolve()),
        "merged": str(merged.resolve()),
        "onto": onto,
        "texts": list(texts) if texts is not None else None,
        "compare_bases": compare_bases,
        "rounded": {o.name: o.dtype for o in plan.outputs if o.is_computed},
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
    }
    proof = check_tolerances(run_verification(spec, merged))
    if not (proof.largest <= proof.tolerance and proof.mean <= proof.mean_tolerance):  # NaN is not
        raise RunError(
            f"the merged checkpoint's predictions differ from those of base and adapter: in "
            f"{proof.rows} texts a logit differs by {proof.largest:.3g} (mean {proof.mean:.3g}), "
            f"more than rounding explains ({proof.tolerance:.3g}, mean "
            f"{proof.mean_tolerance:.3g}); it was removed - name the base that the adapter "
            "was trained on with --base"
        )
    if proof.answers is not None and (different := proof.answers.different):
        rows = ", ".join(map(str, different))
        raise RunError(
            f"the merged folder's answers differ from the run's: loaded by transformers alone, "
            f"with the folder's tokenizer and configurations, it answers {len(different)} of "
            f"{proof.answers.compared} held-out rows differently (row {rows}), though its weights "
            "are right; it was removed - use peftkit predict with the run, or --verify off"
        )
    return proof


def check_tolerances(found: dict[str, Any]) -> MergeProof:
    """The measured differences, with their limits."""
    largest, mean = tolerances(found["computed_in"], found["largest_logit"], found["rounding"])
    return MergeProof(**found, tolerance=largest, mean_tolerance=mean)


def tolerances(
    computed_in: str, largest_logit: float, rounding: Mapping[str, float] | None
) -> tuple[float, float]:
    """The limits of the largest and the mean difference of logits: what another order of sums and
    rounding explain."""
    slack = ARITHMETIC[computed_in] * max(1.0, float(largest_logit))
    measured = rounding or {"largest": 0.0, "mean": 0.0}
    return slack + MARGIN * measured["largest"], slack + MARGIN * measured["mean"]


def run_verification(spec: dict[str, Any], merged: Path) -> dict[str, Any]:
    """What `verify.py` finds in a new process."""
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
            f"the merged checkpoint could not be verified, and was removed: {last} - fix that, or "
            "use --verify off"
        )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
