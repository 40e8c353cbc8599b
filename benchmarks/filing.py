"""Filing: a finished run's record and predictions into benchmarks/records, without paths."""

import gzip
import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def file_record(record: dict[str, Any], folder: Path, comparison: str) -> None:
    """Copy a run's record, without the paths of this machine, and its predictions, compressed."""
    to = RECORDS / comparison / folder.name
    to.mkdir(parents=True, exist_ok=True)
    for source in (record["model"], record["data"]):
        source["location"] = Path(source["location"]).name
    name = Path(record["data"]["asked"]).name
    record["recipe"]["data"]["path"] = record["data"]["asked"] = record["data"]["used"] = name
    (to / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    # no time stamp inside: the same predictions give the same file
    packed = gzip.compress((folder / "predictions.jsonl").read_bytes(), mtime=0)
    (to / "predictions.jsonl.gz").write_bytes(packed)
