"""Load an artifact in a new process and compare its outputs with those of the run.

`python -m peftkit.runs.reload_check RUN` prints the largest difference.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.config.recipe import Recipe
from peftkit.errors import RunError
from peftkit.evaluation.prediction import predict_batches
from peftkit.inference.predictor import load_run
from peftkit.loading.model import LoadedModel
from peftkit.runtime.distributed import subprocess_environment

LARGEST_RELOAD_DIFFERENCE = 1e-5
"""The largest difference of outputs (probabilities, ...) between the trained model and its
artifact."""
NUM_ROWS = 8


def reload_difference(recipe: Recipe, loaded: LoadedModel, examples: Any, folder: Path) -> float:
    """The largest difference between the outputs of the trained model and those of its artifact,
    loaded in a new process.

    Raises `RunError` if the artifact cannot be loaded.
    """
    rows = [dict(examples[index]) for index in range(min(NUM_ROWS, len(examples)))]
    outputs = flat_outputs(recipe, loaded, rows)
    probe = folder / "reload.json"
    probe.write_text(json.dumps({"rows": rows, "outputs": outputs.tolist()}))
    done = subprocess.run(
        [sys.executable, "-m", "peftkit.runs.reload_check", str(folder)],
        capture_output=True,
        text=True,
        env=subprocess_environment(),
    )
    probe.unlink()
    if done.returncode:
        raise RunError(f"the artifact cannot be loaded: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def main(path: Path) -> float:
    """The largest difference between the stored outputs of the run and those of the reloaded
    artifact."""
    probe = json.loads((path / "reload.json").read_text())
    recipe, loaded, _ = load_run(path)
    rows = probe["rows"]
    outputs = flat_outputs(recipe, loaded, rows)
    return float(np.abs(outputs - np.asarray(probe["outputs"])).max(initial=0.0))


def flat_outputs(recipe: Recipe, loaded: LoadedModel, rows: Sequence[Any]) -> np.ndarray:
    """The model's outputs on `rows`, concatenated to one axis."""
    (batch,) = predict_batches(loaded, recipe.task, rows, [range(len(rows))])
    return np.concatenate([np.ravel(output) for output in batch.outputs])


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
