"""Nats, tokens and bytes of rows, and the scores computed from their sums."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peftkit.tasks.base import EvalSplit, Predictions

    Floats = NDArray[np.float64]


def row_counts(predictions: "Predictions", given: "EvalSplit") -> list[tuple[float, int, int]]:
    """Nats, tokens and bytes of each row, over all examples that it became."""
    sizes = list(given.examples["bytes"])
    of = given.examples["of"] if "of" in columns_in(given.examples) else range(len(sizes))
    rows = len(next(iter(given.rows.values()))) if isinstance(given.rows, dict) else len(given.rows)
    found = [(0.0, 0, 0)] * rows
    for row, (mean, count), size in zip(of, predictions.outputs, sizes, strict=True):
        nats, tokens, whole = found[row]
        found[row] = (nats + float(mean) * int(count), tokens + int(count), whole + int(size))
    return found


def columns_in(examples: Any) -> Sequence[str]:
    """The columns of a data set, or of a plain dict of them."""
    return list(examples) if isinstance(examples, dict) else list(examples.column_names)


def token_totals(sums: "Floats") -> "dict[str, Floats]":
    """Bits per byte, nats per token and their exponential from sums (many, 3)."""
    import numpy as np

    nats, tokens, size = sums.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loss = np.where(tokens > 0, nats / tokens, np.nan)
        bits = np.where(size > 0, nats / math.log(2) / size, np.nan)
        return {"bits_per_byte": bits, "perplexity": np.exp(loss), "loss": loss}
