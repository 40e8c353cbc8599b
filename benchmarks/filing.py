"""Filing: records and predictions into benchmarks/records, without paths.

python benchmarks/filing.py runs/imdb: all runs of a comparison, and its report into
benchmarks/report.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def file_record(record: dict[str, Any], folder: Path, comparison: str) -> None:
    """Copy a run's record, without the paths of this machine, its predictions, compressed, and of
    its log the evaluations."""
    to = RECORDS / comparison / folder.name
    to.mkdir(parents=True, exist_ok=True)
    for source in (record["model"], record["data"]):
        source["location"] = Path(source["location"]).name
    name = Path(record["data"]["requested"]).name
    record["recipe"]["data"]["path"] = record["data"]["requested"] = record["data"]["used"] = name
    (to / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    # no time stamp inside: the same predictions give the same file
    predictions = folder / "predictions.jsonl"
    if predictions.is_file():  # a run that failed has none
        packed = gzip.compress(predictions.read_bytes(), mtime=0)
        (to / "predictions.jsonl.gz").write_bytes(packed)
    if (folder / "log.jsonl").is_file():
        evaluations = [
            line for line in (folder / "log.jsonl").read_text().splitlines() if "eval_score" in line
        ]
        (to / "log.jsonl").write_text("".join(f"{line}\n" for line in evaluations))


def main() -> None:
    """File a comparison's runs and report on what is filed."""
    from peftkit.records.record import read_record
    from peftkit.reporting.report import report

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("comparison", type=Path, help="a comparison's folder, as runs/imdb")
    folder = options.parse_args().comparison
    for path in sorted((folder / "runs").glob("*/record.json")):
        record = read_record(path).model_dump(mode="json")
        file_record(record, path.parent, folder.name)
    made = report(RECORDS / folder.name)
    for path in made.write(RECORDS.parent / "report" / folder.name):
        print(path)


if __name__ == "__main__":
    main()
