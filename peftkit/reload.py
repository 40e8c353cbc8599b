"""A fresh process's word on an artefact: `python -m peftkit.reload RUN` prints the largest difference."""

import json
import sys
from pathlib import Path

import numpy as np

from peftkit.evaluation import forward
from peftkit.predicting import load_run


def main(path: Path) -> float:
    """Largest difference between the run's own probabilities and the reloaded artefact's."""
    probe = json.loads((path / "reload.json").read_text())
    recipe, assembled, _ = load_run(path)
    rows = probe["rows"]
    (_, probabilities, _), *_ = forward(assembled, recipe.task, rows, [range(len(rows))])
    return float(np.abs(probabilities - np.asarray(probe["probabilities"])).max())


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
