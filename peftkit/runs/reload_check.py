"""Load an artifact in a fresh process and compare its logits with those of the run.

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
from peftkit.evaluation.prediction import forward
from peftkit.inference.predictor import load_run
from peftkit.loading.model import LoadedModel
from peftkit.runtime.distributed import subprocess_environment

LARGEST_RELOAD_DIFFERENCE = 1e-5
"""Of outputs (probabilities, ...): the trained model and its artifact loaded elsewhere here."""
PROBED_ROWS = 8


def reload_difference(recipe: Recipe, loaded: LoadedModel, examples: Any, folder: Path) -> float:
    """Largest difference between the trained model and its artifact in a fresh process.

    Raises `RunError` where the artifact cannot be loaded.
    """
    rows = [dict(examples[index]) for index in range(min(PROBED_ROWS, len(examples)))]
    outputs = probed(recipe, loaded, rows)
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
        raise RunError(f"the artifact cannot be loaded again: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def main(path: Path) -> float:
    """Largest difference between the run's own outputs and the reloaded artifact's."""
    probe = json.loads((path / "reload.json").read_text())
    recipe, loaded, _ = load_run(path)
    rows = probe["rows"]
    outputs = probed(recipe, loaded, rows)
    return float(np.abs(outputs - np.asarray(probe["outputs"])).max(initial=0.0))


def probed(recipe: Recipe, loaded: LoadedModel, rows: Sequence[Any]) -> np.ndarray:
    """What the task keeps of the model's word on the rows, one behind the other."""
    (said,) = forward(loaded, recipe.task, rows, [range(len(rows))])
    return np.concatenate([np.ravel(output) for output in said.outputs])


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
