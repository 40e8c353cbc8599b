"""The record of a run: scores, cost and provenance, stored as `record.json`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr
from typing_extensions import Self

from peftkit.errors import RunError
from peftkit.hub.source import Source
from peftkit.metrics.registry import Score
from peftkit.records.conversion import convert
from peftkit.registry import Settings
from peftkit.storage.strict_json import parse_strict

SCHEMA_VERSION = 2
"""1: peftkit 0.1, whose records are converted when they are read."""
Used = Literal["packed", "packed_sdpa", "padded"]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class ParameterCount(Settings):
    """Numbers of parameters; 4-bit weights count in full, shared ones and a trained head once."""

    trainable: Count
    """Trained parameters, including the head."""
    total: Count
    """All parameters of the adapted model: base, head and adapter."""
    base: Count
    head: Count
    adapter: Count

    @property
    def share(self) -> float:
        """Trainable parameters as a share of all."""
        return self.trainable / self.total


class Cost(Settings):
    """Time and memory that a run took; null if unknown."""

    train_seconds: float
    """Time in optimizer steps, without loading, evaluation and checkpoints."""
    evaluate_seconds: float
    """Time to score the test split."""
    validate_seconds: float | None = None
    """Time to score the validation split during training; null in older records."""
    total_seconds: float
    """Time of the whole run, including processes that were interrupted."""
    tokens: Count
    """Tokens trained on, without padding."""
    tokens_per_second: float
    samples_per_second: float
    padding_share: float
    """Padding as a share of all positions computed."""
    peak_bytes: Count
    """Peak memory of rank 0 before the test split is scored: resident set size on a CPU, allocated
    memory on a GPU."""
    peak_evaluate_bytes: Count | None = None
    """Peak memory of rank 0 while the test split is scored; null if it was not measured."""
    peak_reserved_bytes: Count | None
    """Peak memory reserved by the GPU's allocator."""
    predicted_peak_bytes: Count | None
    """Peak memory predicted by `peftkit plan`."""
    artifact_bytes: Count
    """Size of the artifact on disk."""


class WorldRecord(Settings):
    """Processes and hardware of a run; resuming it exactly needs the same."""

    ranks: Count
    threads: Count
    precision: str
    sharding: str
    device: str
    micro_batch_size: Count
    operations_per_second: dict[str, float] = Field(default_factory=dict)
    """Measured speed of matrix products by precision, where `precision: auto` compared them."""


class Engine(Settings):
    """Batch layout and attention of a run, and why they were chosen."""

    used: Used
    """packed: one row without padding, attention by matrix products; packed_sdpa: the same with
    torch's `scaled_dot_product_attention`; padded: one row per example."""
    reason: str
    """Why it was chosen."""
    tokens_per_second: dict[Used, float] = Field(default_factory=dict)
    """Measured speed of each layout, forward and backward on some batches; empty: not measured."""


class Proof(Settings):
    """Integrity check: what should train did, and nothing else."""

    status: Literal["proven", "too short", "failed"]
    moved: int
    """Number of trained tensors that changed."""
    unmoved: list[str]
    """Trained tensors that did not change but should have."""
    excused: dict[str, str]
    """Unchanged tensors whose gradient is zero by construction, each with the reason."""
    frozen_intact: bool
    """Whether every frozen tensor is bit for bit the same as before."""
    changed: list[str]
    """Frozen tensors that changed."""
    reload_difference: float | None
    """Largest difference of a probability after reloading the artifact in a fresh process; null:
    not tried."""


class Trial(Settings):
    """One learning rate of a search."""

    lr: float
    score: float | None
    """Best headline score on the validation split; null if the trial failed."""
    step: Count
    """Last optimizer step."""
    status: Literal["finished", "pruned", "failed"]
    default: bool
    """Whether it is the default of the strategy."""


class Tuning(Settings):
    """How the learning rate was chosen, on the validation split only."""

    metric: str
    rows: Count
    """Training examples of each trial."""
    trials: list[Trial]
    chosen: float
    """The learning rate of the runs."""


class RunRecord(Settings):
    """Everything that is known of a run after it has ended; `record.json`."""

    schema_version: int = SCHEMA_VERSION
    name: str
    digest: str
    status: Literal["finished", "failed"]
    reason: str | None = None
    """Why the run failed."""
    recipe: dict[str, Any]
    model: Source
    data: Source
    rows: dict[str, Count]
    """Examples in each split, and counts of the data validation."""
    notes: list[str]
    """Caveats about the scores."""
    parameters: ParameterCount | None = None
    headline: str
    labels: list[str] = Field(default_factory=list)
    """Label names in the order of their ids; empty if the task has none."""
    scores: dict[str, Score] = Field(default_factory=dict)
    """Scores on the test split, the headline first."""
    baseline: dict[str, Score] = Field(default_factory=dict)
    """Scores of the simplest baseline on the same rows: the majority class, the mean."""
    baselines: dict[str, dict[str, Score]] = Field(default_factory=dict)
    """Scores of further baselines without training, by name."""
    details: dict[str, Any] = Field(default_factory=dict)
    validation: dict[str, float | None] = Field(default_factory=dict)
    """Best evaluation during training: step, score, loss; empty if there was none."""
    steps: Count = 0
    tuning: Tuning | None = None
    """How a comparison chose the learning rate; null if the recipe sets it."""
    cost: Cost | None = None
    proof: Proof | None = None
    world: WorldRecord | None = None
    engine: Engine | None = None
    """Null in older records."""
    exact: bool = True
    """Whether the run is bit for bit equal to one that was not interrupted."""
    versions: dict[str, str] = Field(default_factory=dict)
    finished_at: str = ""
    """UTC, ISO 8601."""
    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """The directory that the record was read from or written to; None if it is only in memory.
        It is no part of the file."""
        return self._folder

    def located(self, folder: Path) -> Self:
        """This record, which is in `folder`."""
        self._folder = folder.absolute()  # valid after a change of the working directory
        return self

    @property
    def folder_name(self) -> str:
        """The name of the run's directory; that of a first run if it is not known."""
        if self._folder is not None:
            return self._folder.name
        return f"{self.name}-{'standin-' if self.data.is_fallback else ''}{self.digest[:8]}"


def read_record(path: Path) -> RunRecord:
    """The record at `path`.

    Raises `RunError` where it is no file, damaged or of another version.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        stored = parse_strict(path.read_bytes())
    except (ValueError, OSError) as error:
        raise RunError(f"{path}: is not a record ({error}) - remove it to run again") from None
    if not isinstance(stored, dict):
        raise RunError(f"{path}: is not a record (no mapping) - remove it to run again")
    version = stored.get("schema_version")
    if version == 1:
        stored, version = {**convert(stored), "schema_version": SCHEMA_VERSION}, SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path}: has schema version {str(version)[:40]}, this peftkit reads "
            f"{SCHEMA_VERSION} - use the peftkit that wrote it, or run again"
        )
    return RunRecord.model_validate(stored).located(path.parent)


def run_folder(run: RunRecord | Path | str, root: Path = Path("runs")) -> Path:
    """The directory of `run`; below `root` for a record that is only in memory."""
    if isinstance(run, RunRecord):
        return run.folder or root / run.folder_name
    return Path(run)
