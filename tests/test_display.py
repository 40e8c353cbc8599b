"""The display: what it says of memory."""

from pathlib import Path

from commands import python


def test_the_peak_is_the_process_own_and_not_that_of_the_one_that_started_it(
    tmp_path: Path,
) -> None:
    held = b"x" * 400_000_000  # resident here when the other process starts
    code = "from peftkit.display import peak_resident_bytes; print(peak_resident_bytes())"
    peak = int(python("-c", code, cwd=tmp_path).stdout)
    assert 5_000_000 < peak < len(held)
