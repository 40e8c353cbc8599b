"""The table that `peftkit train` prints for a record."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftkit.metrics.registry import Score
    from peftkit.records.record import RunRecord


def record_rows(record: "RunRecord") -> list[dict[str, str]]:
    """A record as rows: strategy, scores, baselines, cost and proof."""
    rows = [("run", f"{record.name} {record.digest[:8]}"), ("strategy", strategy_of(record))]
    if record.parameters is not None:
        counted = record.parameters
        rows.append(
            ("trainable", f"{counted.trainable:,} of {counted.total:,} ({counted.share:.2%})")
        )
    for name, score in record.scores.items():
        if "[" not in name:
            rows.append((name, interval(score)))
    for name, scores in (record.baselines or {"majority class": record.baseline}).items():
        if record.headline in scores:
            rows.append((f"{record.headline}, {name}", interval(scores[record.headline])))
    if record.cost is not None:
        cost = record.cost
        rows.append(
            ("time", f"{cost.train_seconds:.1f} s training, {cost.total_seconds:.1f} s total")
        )
        rows.append(
            (
                "speed",
                f"{cost.samples_per_second:.1f} samples/s, {cost.tokens_per_second:,.0f} tokens/s",
            )
        )
        rows.append(("peak memory", f"{cost.peak_bytes / 2**20:,.0f} MiB"))
        rows.append(("artifact", f"{cost.artifact_bytes / 2**20:.2f} MiB"))
    if record.proof is not None:
        rows.append(("proof", proof_of(record)))
    return [{"what": what, "value": value} for what, value in rows]


def strategy_of(record: "RunRecord") -> str:
    """The strategy and the quantization of the base model."""
    quantization = record.recipe["quantize"]["kind"]
    kind = record.recipe["strategy"]["kind"]
    return kind if quantization == "none" else f"{kind} on {quantization}"


def interval(score: "Score") -> str:
    """A score with its 95% interval."""
    if score.value is None:
        return f"undefined (n={score.n})"
    if score.low is None or score.high is None:
        return f"{score.value:.4f} (n={score.n})"
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}] (n={score.n})"


def proof_of(record: "RunRecord") -> str:
    """The proof on one line."""
    proof = record.proof
    assert proof is not None
    frozen = "frozen tensors unchanged" if proof.frozen_intact else "frozen tensors CHANGED"
    reload = (
        "artifact not reloaded"
        if proof.reload_difference is None
        else f"reloaded artifact differs by {proof.reload_difference:.1g}"
    )
    return f"{proof.status}: {proof.moved} tensors trained, {frozen}, {reload}"
