"""Peak memory: of this process, of training and of evaluation."""

from pathlib import Path

from support.commands import python
from support.run_processes import Zygote, record

MIB = 2**20


def test_the_peak_is_that_of_the_process_and_not_of_its_parent(
    tmp_path: Path,
) -> None:
    resident = b"x" * 400_000_000  # in memory when the other process starts
    code = (
        "from peftkit.runtime.peak_memory import peak_resident_bytes; print(peak_resident_bytes())"
    )
    peak = int(python("-c", code, cwd=tmp_path).stdout)
    assert 5_000_000 < peak < len(resident)


def test_the_peaks_of_training_and_evaluation_are_recorded_separately(
    zygote: Zygote, tmp_path: Path
) -> None:
    ended = zygote.run(tmp_path, "training.epochs=1", before="len(b'x' * (400 * 2**20))")
    assert ended.code == 0, ended.said
    cost = record(tmp_path)["cost"]
    assert 20 * MIB < cost["peak_evaluate_bytes"] < cost["peak_bytes"] - 200 * MIB
