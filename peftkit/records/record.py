"""The record of a run: what happened in it, frozen, as JSON."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr
from typing_extensions import Self

from peftkit.errors import RunError
from peftkit.hub.source import Source
from peftkit.metrics.registry import Score
from peftkit.records.conversion import convert
from peftkit.registry import Settings
from peftkit.storage.strict_json import read_plain

SCHEMA_VERSION = 2
"""1: peftkit 0.1, whose records are converted when they are read."""
Used = Literal["packed", "packed_sdpa", "padded"]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class ParameterCount(Settings):
    """Weights by part: 4-bit weights as weights, shared ones and a trained head once."""

    trainable: Count
    """Weights that the run trains, the head's among them."""
    total: Count
    """All weights of the adapted model: base, head and adapter."""
    base: Count
    head: Count
    adapter: Count

    @property
    def share(self) -> float:
        """Trainable weights as a share of all."""
        return self.trainable / self.total


class Cost(Settings):
    """What a run took. Missing is null."""

    train_seconds: float
    """Optimizer steps alone: no loading, evaluation or checkpoints."""
    evaluate_seconds: float
    """Scoring the test split."""
    validate_seconds: float | None = None
    """Scoring the validation split while training; null in records of before."""
    total_seconds: float
    """The whole run in this and all interrupted processes."""
    tokens: Count
    """Tokens trained on, padding not counted."""
    tokens_per_second: float
    samples_per_second: float
    padding_share: float
    """Padded positions as a share of all positions computed."""
    peak_bytes: Count
    """Largest memory of rank 0 until the test split is scored: the process's resident set on a
    CPU, allocated on a GPU."""
    peak_evaluate_bytes: Count | None = None
    """Largest memory of rank 0 while the test split is scored; null where it is not known apart."""
    peak_reserved_bytes: Count | None
    """Largest memory that the GPU's allocator held."""
    predicted_peak_bytes: Count | None
    """What `peftkit plan` says for this run."""
    artifact_bytes: Count
    """Size of what was trained, on disk."""


class WorldRecord(Settings):
    """Where a run ran; resuming bit for bit needs the same."""

    ranks: Count
    threads: Count
    precision: str
    sharding: str
    device: str
    micro_batch_size: Count
    operations_per_second: dict[str, float] = Field(default_factory=dict)
    """Of matrix products in each precision, as measured where `precision: auto` chose by them."""


class Engine(Settings):
    """How batches were laid out and attended to, and by what that was chosen."""

    used: Used
    """One row without padding, its attention by products of matrices or by torch's
    `scaled_dot_product_attention`; or a padded row an example."""
    reason: str
    """Why it is this one."""
    tokens_per_second: dict[Used, float] = Field(default_factory=dict)
    """Of each engine, forward and back on some of the run's batches; empty: not measured."""


class Proof(Settings):
    """That what should train did, and nothing else."""

    status: Literal["proven", "too short", "failed"]
    moved: int
    """Trained tensors that differ from their start."""
    unmoved: list[str]
    """Trained tensors that do not, though they should."""
    excused: dict[str, str]
    """Unmoved tensors whose gradient is zero by construction, with the reason."""
    frozen_intact: bool
    """Whether every frozen tensor is bit for bit what it was."""
    changed: list[str]
    """Frozen tensors that are not."""
    reload_difference: float | None
    """Largest difference of a probability, the artifact loaded in a fresh process; null: not
    tried."""


class Trial(Settings):
    """One learning rate that was tried before a strategy's runs."""

    lr: float
    score: float | None
    """The validation split's best headline score; null where the trial failed."""
    step: Count
    """The optimizer step it came to."""
    status: Literal["finished", "pruned", "failed"]
    default: bool
    """Whether it is the strategy's own default rate."""


class Tuning(Settings):
    """How a run's learning rate was chosen: on the validation split alone, without a test score."""

    metric: str
    rows: Count
    """Examples each trial was trained on."""
    trials: list[Trial]
    chosen: float
    """The learning rate that the runs take."""


class RunRecord(Settings):
    """What happened in a run; `record.json`."""

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
    """Examples in each split, and what the pre-flight counted."""
    notes: list[str]
    """What a reader of the scores must know."""
    parameters: ParameterCount | None = None
    headline: str
    labels: list[str] = Field(default_factory=list)
    """The labels' names in id order; empty where the task has none."""
    scores: dict[str, Score] = Field(default_factory=dict)
    """Scores on the test split, the headline first."""
    baseline: dict[str, Score] = Field(default_factory=dict)
    """The scores on the same rows of the simplest answer: always the majority class, the mean."""
    baselines: dict[str, dict[str, Score]] = Field(default_factory=dict)
    """The scores of further answers without training, by what they are called."""
    details: dict[str, Any] = Field(default_factory=dict)
    validation: dict[str, float | None] = Field(default_factory=dict)
    """The best evaluation during training: step, score, loss; empty where there was none."""
    steps: Count = 0
    tuning: Tuning | None = None
    """How a comparison chose the learning rate; null where the recipe says it."""
    cost: Cost | None = None
    proof: Proof | None = None
    world: WorldRecord | None = None
    engine: Engine | None = None
    """Null in records of before."""
    exact: bool = True
    """Whether the run is bit for bit what an uninterrupted one in one world gives."""
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
        """The name of the folder that the run lies in."""
        return f"{self.name}-{'standin-' if self.data.is_fallback else ''}{self.digest[:8]}"


def read_record(path: Path) -> RunRecord:
    """The record at `path`.

    Raises `RunError` where it is no file, damaged or of another version.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        said = read_plain(path.read_bytes())
    except (ValueError, OSError) as error:
        raise RunError(f"{path}: is not a record ({error}) - remove it to run again") from None
    if not isinstance(said, dict):
        raise RunError(f"{path}: is not a record (no mapping) - remove it to run again")
    version = said.get("schema_version")
    if version == 1:
        said, version = {**convert(said), "schema_version": SCHEMA_VERSION}, SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path}: has schema version {str(version)[:40]}, this peftkit reads "
            f"{SCHEMA_VERSION} - use the peftkit that wrote it, or run again"
        )
    return RunRecord.model_validate(said).located(path.parent)


def run_folder(run: RunRecord | Path | str, root: Path = Path("runs")) -> Path:
    """The directory of `run`; below `root` for a record that is only in memory."""
    if isinstance(run, RunRecord):
        return run.folder or root / run.folder_name
    return Path(run)
