"""Rendering: a report as Markdown and CSV, with names that can harm neither page nor sheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from peftkit.curves import printable
from peftkit.reporting.standings import Measure, Standing

if TYPE_CHECKING:
    from peftkit.reporting import Report

Cell = Callable[[Standing], str]
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
MARKED = frozenset("\\`*[]|~!")
FRONT = {"front": "on", "open": "open", "behind": "behind"}


def escaped(text: str) -> str:
    """`text` for Markdown: no mark-up, no HTML, no control characters, on one line."""
    one_line = printable(" ".join(text.split()))
    letters = (ENTITIES.get(c, f"\\{c}" if c in MARKED else c) for c in one_line)
    return "".join(letters)


def cell(text: str) -> str:
    """`text` for a sheet: what a program would take for a formula becomes a text."""
    clean = printable(" ".join(text.split()))
    return f"'{clean}" if clean.startswith(("=", "+", "-", "@")) else clean


def markdown(report: Report) -> str:
    """The whole report as a Markdown page."""
    first, *others = map(escaped, report.verdict)
    parts = [
        f"# {escaped(report.title)}\n",
        f"**{first}**\n",
        "\n".join(f"- {line}" for line in others),
        table(report),
        explained(report),
        section("Runs without a score", failures(report)),
        section("Not read", [f"{f.where}: {f.what}" for f in report.unread]),
        section("Mixed, as --allow-mixed allows", report.mixed),
        section("Notes", report.notes),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def section(title: str, lines: Sequence[str]) -> str:
    """A list under a heading; nothing where there are no lines."""
    items = "".join(f"- {escaped(line)}\n" for line in lines)
    return f"\n## {title}\n\n{items}" if items else ""


def failures(report: Report) -> list[str]:
    """A line a run that has no score."""
    return [
        f"{each.label}, seed {failure.seed}: {failure.status} ({failure.run}: {failure.reason})"
        for each in report.standings
        for failure in each.failures
    ]


def columns(report: Report) -> dict[str, Cell]:
    """The table's columns; `escaped` text."""
    found: dict[str, Cell] = {
        "strategy": lambda s: escaped(s.label) + (" (reference)" * (s.label == report.reference)),
        "base held": lambda s: "" if s.quantization == "none" else escaped(s.quantization),
        "trainable": lambda s: "" if s.trainable is None else f"{s.trainable:,}",
        "share": lambda s: "" if s.share is None else f"{s.share:.2%}",
        "artefact MiB": lambda s: median(s.measures["artefact_bytes"], 2**20, ".2f"),
        "peak MiB": lambda s: median(s.measures["peak_bytes"], 2**20, ",.0f"),
        "peak MiB, evaluation": lambda s: "",  # no record holds it apart yet
        "tokens/s": lambda s: median(s.measures["tokens_per_second"], 1, ",.0f"),
        "train s": lambda s: median(s.measures["train_seconds"], 1, ",.0f"),
        "s to reference": reached,
        f"{escaped(report.metric)}, mean ± sd": score,
        "seeds": lambda s: str(len(s.seeds)) if s.seeds else escaped(s.status),
        "difference [95 %]": difference,
        "p, Holm": lambda s: "" if s.difference is None else f"{s.difference.p_corrected:.3g}",
        "could have shown": lambda s: (
            "" if s.difference is None else f"{s.difference.detectable:.4f}"
        ),
        "group": lambda s: s.groups,
        "front: weights": lambda s: FRONT.get(s.front.get("trainable", ""), ""),
        "front: memory": lambda s: FRONT.get(s.front.get("peak_bytes", ""), ""),
        "front: time": lambda s: FRONT.get(s.front.get("train_seconds", ""), ""),
    }
    if report.mixed:
        found["mixed"] = lambda s: escaped(", ".join(s.mixed))
    return found


def median(found: Measure | None, unit: float, form: str) -> str:
    """A cost's median; empty where it is unknown."""
    return "" if found is None else format(found.median / unit, form)


def reached(standing: Standing) -> str:
    """Seconds to the reference's validation score, or how many seeds got there."""
    if standing.reached is None:
        return ""
    found = median(standing.measures["seconds_to_reference"], 1, ",.0f")
    return f"{found} ({standing.reached} seeds)" if found else "not reached"


def score(standing: Standing) -> str:
    """The mean with its deviation."""
    if standing.mean is None:
        return ""
    spread = "" if standing.deviation is None else f" ± {standing.deviation:.4f}"
    return f"{standing.mean:.4f}{spread}"


def difference(standing: Standing) -> str:
    """The difference to the reference with its interval."""
    found = standing.difference
    if found is None:
        return ""
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def table(report: Report) -> str:
    """The Markdown table: a row a strategy, the majority class last; empty columns left out."""
    named = columns(report)
    rows = [[shown(each) for shown in named.values()] for each in report.standings]
    kept = [i for i, _ in enumerate(named) if any(row[i] for row in rows)]
    heads = [list(named)[i] for i in kept]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(row[i] for i in kept)} |" for row in rows]
    if report.baseline is not None:
        known = {heads[0]: "majority class", "trainable": "0"}
        own = [known.get(h, f"{report.baseline:.4f}" if "mean ±" in h else "") for h in heads]
        lines.append(f"| {' | '.join(own)} |")
    left = [name for i, name in enumerate(named) if i not in kept and name not in ("base held",)]
    empty = f"\nNo record holds: {', '.join(left)}.\n" if left else ""
    return "\n" + "\n".join(lines) + "\n" + empty


def explained(report: Report) -> str:
    """What the table's columns mean."""
    count = sum(each.difference is not None for each in report.standings)
    lines = [
        f"{escaped(report.metric)} on {report.rows:,} test rows; costs are medians over seeds, and "
        "seconds are those of optimizer steps. Peak memory is the run's, training and evaluation "
        "together."
    ]
    if count:
        lines.append(
            f"Difference: paired, to {escaped(report.reference)}, same rows and seeds; both vary "
            "in the interval and in p (seeds and rows crossed: Student's t for the seeds' part, "
            f"the normal for the rows'). p is corrected by Holm over all {len(report.pairs)} "
            f"pairs, half of the errors being allotted to the {count} with the reference; groups "
            "are by the same p: ties alone would tell some two apart in at most 5 % of reports. "
            "Could have shown: the true difference found in 80 % of cases, after correction."
        )
        lines.append(
            "Front: on - no strategy has both a better mean and a lower cost; behind - one that is "
            "significantly better is surely no dearer; open - these runs cannot tell."
        )
    return "\n" + "\n\n".join(lines) + "\n"


MEASURES = (
    "artefact_bytes",
    "peak_bytes",
    "peak_evaluate_bytes",
    "tokens_per_second",
    "train_seconds",
    "total_seconds",
    "seconds_to_reference",
)
DIFFERENCE = ("value", "low", "high", "p", "p_corrected", "detectable", "rows")


def sheet(report: Report) -> str:
    """The standings as CSV; unknown is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    first = ["label", "strategy", "quantization", "status", "trainable", "total"]
    rest = ["mean", "deviation", "low", "high", "groups"]
    heads = [*first, *MEASURES, "seeds", "failures", *rest]
    heads += [f"difference_{name}" for name in DIFFERENCE]
    writer.writerow([*heads, "front_trainable", "front_memory", "front_time", "settings", "mixed"])
    for each in report.standings:
        measures = [each.measures.get(name) for name in MEASURES]
        found = each.difference
        values: list[object] = [
            *(getattr(each, name) for name in first),
            *(m.median if m else None for m in measures),
            " ".join(map(str, each.seeds)),
            len(each.failures),
            *(getattr(each, name) for name in rest),
            *(getattr(found, name) if found else None for name in DIFFERENCE),
            *(each.front.get(axis) for axis in ("trainable", "peak_bytes", "train_seconds")),
            json.dumps(each.settings),
            "; ".join(each.mixed),
        ]
        writer.writerow([cell(v) if isinstance(v, str) else v for v in values])
    return out.getvalue()
