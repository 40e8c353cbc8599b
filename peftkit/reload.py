"""A fresh process's word on an artefact: `python -m peftkit.reload RUN` prints the difference."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.errors import RunError
from peftkit.evaluation import forward
from peftkit.model import Assembled
from peftkit.predicting import load_run
from peftkit.recipe import Recipe
from peftkit.world import without_launcher

LARGEST_RELOAD_DIFFERENCE = 1e-5
"""Of probabilities, between the trained model and its artefact loaded elsewhere on this machine."""
PROBED_ROWS = 8


def reload_difference(recipe: Recipe, assembled: Assembled, examples: Any, folder: Path) -> float:
    """Largest difference between the trained model and its artefact in a fresh process.

    Raises `RunError` where the artefact cannot be loaded.
    """
    rows = [dict(examples[index]) for index in range(min(PROBED_ROWS, len(examples)))]
    (_, probabilities, _), *_ = forward(assembled, recipe.task, rows, [range(len(rows))])
    probe = folder / "reload.json"
    probe.write_text(json.dumps({"rows": rows, "probabilities": probabilities.tolist()}))
    # where the parent found its modules, plug-ins too
    places = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "peftkit.reload", str(folder)],
        capture_output=True,
        text=True,
        env={**without_launcher(), "PYTHONPATH": places},
    )
    probe.unlink()
    if done.returncode:
        raise RunError(f"the artefact cannot be loaded again: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def main(path: Path) -> float:
    """Largest difference between the run's own probabilities and the reloaded artefact's."""
    probe = json.loads((path / "reload.json").read_text())
    recipe, assembled, _ = load_run(path)
    rows = probe["rows"]
    (_, probabilities, _), *_ = forward(assembled, recipe.task, rows, [range(len(rows))])
    return float(np.abs(probabilities - np.asarray(probe["probabilities"])).max())


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
