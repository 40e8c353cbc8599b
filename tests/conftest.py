"""What tests share: the zygote that runs are forked from, and a record of the behavior matrix."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.run_processes import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts runs in processes of their own, with everything imported already."""
    started = Zygote()
    yield started
    started.close()


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`varied("llama", pad="beyond")`: the folder of that `VariedModel`, made once."""
    from support.varied_models import VariedModel, build

    folder = tmp_path_factory.mktemp("varied")
    return lambda *named, **differing: build(VariedModel(*named, **differing), folder)


@pytest.fixture
def proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The proof of a merge by the same code, without the seconds that a fresh process imports."""
    from peftkit.merging.verification import proof, verify

    monkeypatch.setattr(proof, "run_verification", lambda spec, _: verify.main(spec))
    gc.freeze()  # it collects garbage, here among all that the tests have imported
    yield
    gc.unfreeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--matrix-to FILE`: what became of every cell of the behavior matrix, as JSON."""
    parser.addoption("--matrix-to", type=Path, default=None, help="write the matrix's outcome here")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the matrix where a file for it is named; a worker's reports reach the one that asks."""
    to = config.getoption("--matrix-to")
    if to is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(MatrixRecord(to))


class MatrixRecord:
    """Collects the outcome of every cell and writes them in the end."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.cells: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the whole test's report, not those of its parts."""
        known = dict(report.user_properties)
        if report.when == "call" and "cell" in known and type(report) is pytest.TestReport:
            way, model, quantize, precision = known["cell"]  # type: ignore[misc]
            works = "refused" if known["refused"] else "works"
            self.cells.append(
                {
                    "way": way,
                    "model": model,
                    "quantize": quantize,
                    "precision": precision,
                    "outcome": works if report.passed else "fails",
                }
            )

    def pytest_sessionfinish(self) -> None:
        """One line a cell, so that differences can be read."""
        lines = ",\n ".join(json.dumps(cell) for cell in self.cells)
        self.to.write_text(f"[\n {lines}\n]\n")
