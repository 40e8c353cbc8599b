"""Page: a report as one HTML file that opens from disk, needs no network and sends nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from peftkit.reporting.render.charts import missing
from peftkit.reporting.render.markdown import Cells, cells, explanations, failures
from peftkit.reporting.render.picture import COLORS, Picture, shown_label
from peftkit.reporting.render.vega import bundle
from peftkit.runs.learning_curves import printable

if TYPE_CHECKING:
    from peftkit.reporting.analysis.disagreement import DisputedRow
    from peftkit.reporting.analysis.results import ReportData
    from peftkit.reporting.analysis.summaries import Standing

LIGHT = {**COLORS, "shade": "#f2f5f8", "edge": "#767676", "quiet": "#595959"}
DARK = {
    "ink": "#e8e8e8",
    "paper": "#16181c",
    "grid": "#3a3f47",
    "shade": "#20242b",
    "edge": "#8a8f98",
    "quiet": "#a9aeb7",
    "c1": COLORS["c6"],
    "c2": COLORS["c5"],
    "c5": "#F0E442",
    "c6": COLORS["c1"],
}
"""What dark mode changes: of the same eight colors, the bright ones come first."""
HARMFUL: dict[str, str | int | None] = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def page(report: ReportData, drawn: Sequence[Picture]) -> str:
    """The whole page; `drawn` are the report's pictures."""
    style, script, vega = stylesheet(), part("page.js"), bundle()
    found = cells(report)
    return Template(part("page.html")).substitute(
        policy=policy([vega, script], style),
        title=clean(report.title),
        style=style,
        verdict=verdict(report.verdict),
        filters=filters(report),
        table=standings(report, found),
        empty=paragraph([f"No record holds: {', '.join(found.empty)}."] if found.empty else []),
        figures="\n".join(map(figure, drawn)),
        missing=paragraph(missing(report)),
        disputed=disputed(report),
        lists=lists(report),
        reading="\n".join(f"<p>{clean(line)}</p>" for line in explanations(report)),
        data=safe_json([{"name": p.name, "specification": p.specification(named)} for p in drawn]),
        vega=vega,
        script=script,
    )


def part(name: str) -> str:
    """A part of the page as it lies beside this module."""
    return files("peftkit.reporting.render").joinpath(name).read_text(encoding="utf-8")


def named(color: str) -> str:
    """A color as the style sheet defines it, so that pictures follow it into dark mode."""
    return f"var(--{color})"


def stylesheet() -> str:
    """The style sheet, with both sets of colors; print is always light."""
    light, dark = (
        "".join(f"--{name}: {value}; " for name, value in colors.items())
        for colors in (LIGHT, DARK)
    )
    mode = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}"
    return f":root {{ {light}}}\n{mode}\n{part('page.css')}"


def policy(scripts: Iterable[str], style: str) -> str:
    """The page's Content-Security-Policy: its own scripts and style by their hashes, nothing else.

    No script that a name might smuggle in runs, and nothing is loaded, sent or evaluated.
    """
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(map(digest, scripts)),
        "style-src": digest(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def digest(content: str) -> str:
    """The source expression for an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def clean(text: str) -> str:
    """`text` for HTML, in elements and in attributes."""
    return escape(printable(" ".join(text.split())))


def safe_json(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(str.maketrans(HARMFUL))


def verdict(lines: Sequence[str]) -> str:
    """The answer, and what goes with it."""
    first, *others = map(clean, lines)
    items = "".join(f"<li>{line}</li>" for line in others)
    return f"<p>{first}</p>" + (f"<ul>{items}</ul>" if items else "")


def paragraph(sentences: Sequence[str]) -> str:
    """Sentences in small print; nothing where there are none."""
    return f'<p class="quiet">{clean(" ".join(sentences))}</p>' if sentences else ""


def filters(report: ReportData) -> str:
    """Check boxes by strategy and by how the base is held."""
    kinds = dict.fromkeys(each.strategy for each in report.standings)
    held = dict.fromkeys(each.quantization for each in report.standings)
    return boxes("Strategy", "kind", sorted(kinds)) + boxes("Base held in", "held", sorted(held))


def boxes(legend: str, name: str, values: Sequence[str]) -> str:
    """A group of check boxes, all of them checked."""
    inner = "".join(
        f'<label><input type="checkbox" name="{name}" value="{clean(value)}" checked> '
        f"{clean(value)}</label>"
        for value in values
    )
    return f"<fieldset><legend>{legend}</legend>{inner}</fieldset>"


def standings(report: ReportData, found: Cells) -> str:
    """The table of strategies, each heading a button that sorts."""
    numeric = [' class="number" data-number' * (c.value is not None) for c in found.columns]
    heads = "".join(
        f'<th scope="col"{kind}><button type="button">{clean(column.head)}</button></th>'
        for column, kind in zip(found.columns, numeric, strict=True)
    )
    lines = [
        standing_row(number, standing, report.reference, found)
        for number, standing in enumerate(report.standings)
    ]
    lines += [
        f'<tr class="baseline"><th scope="row">{clean(row[0])}</th>'
        + "".join(f'<td class="number">{clean(text)}</td>' for text in row[1:])
        + "</tr>"
        for row in found.rows[len(report.standings) :]
    ]
    body = "\n".join(lines)
    return f'<table id="standings"><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>'


def standing_row(number: int, standing: Standing, reference: str, found: Cells) -> str:
    """One strategy's row, with what it is filtered and sorted by."""
    parts: list[str] = []
    for column, text in zip(found.columns, found.rows[number], strict=True):
        value = column.value(standing) if column.value is not None else None
        sorted_by = clean(text) if column.value is None else "" if value is None else repr(value)
        kind = ' class="number"' * (column.value is not None)
        element = "td" if parts else 'th scope="row"'
        parts.append(f'<{element}{kind} data-value="{sorted_by}">{clean(text)}</{element[:2]}>')
    facts = {"label": standing.label, "kind": standing.strategy, "held": standing.quantization}
    said = "".join(f' data-{name}="{clean(value)}"' for name, value in facts.items())
    marked = ' class="reference"' * (standing.label == reference)
    return f'<tr data-n="{number}"{said}{marked}>{"".join(parts)}</tr>'


def figure(picture: Picture) -> str:
    """A picture's place, its caption and its numbers as a table."""
    heads = "".join(f'<th scope="col">{clean(head)}</th>' for head in picture.columns)
    lines = "\n".join(
        f'<tr data-n="{row["n"]}"{second(row)}>'
        + "".join(f"<td>{clean(number(row[key]))}</td>" for key in picture.columns.values())
        + "</tr>"
        for row in picture.rows
    )
    said = clean(" ".join([picture.caption, *picture.words]))
    name, title = picture.name, clean(picture.title)
    return (
        f'<figure aria-labeledby="title-{name}"><h3 id="title-{name}">{title}</h3>'
        f'<div class="drawing" id="drawing-{name}"></div><figcaption>{said}</figcaption>'
        f'<details><summary>The numbers of this picture</summary><div class="wide" tabindex="0" '
        f'role="region" aria-label="The numbers of: {title}"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div></details></figure>"
    )


def second(row: Mapping[str, Any]) -> str:
    """The number of a row's second strategy, where it has one."""
    return f' data-m="{row["m"]}"' if "m" in row else ""


def number(value: object) -> str:
    """A picture's value as text; unknown is empty."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.5g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def disputed(report: ReportData) -> str:
    """The test rows that strategies differ most on, by their ids, never their texts."""
    rows = report.disagreement.disputed if report.disagreement else []
    if not rows:
        return ""
    heads = "".join(
        f'<th scope="col">{h}</th>' for h in ("row", "label", "answers", "mostly wrong")
    )
    body = "".join(map(disputed_row, rows))
    return (
        '<section aria-labeledby="disputed"><h2 id="disputed">Rows that strategies disagree on'
        "</h2><p>The test rows on which answers vary most between strategies, each of which is "
        "the mean of its seeds.</p>"
        '<div class="wide" tabindex="0" role="region" aria-labeledby="disputed"><table><thead><tr>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def disputed_row(row: DisputedRow) -> str:
    """One such row."""
    answers = sorted(row.answers.items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{name} {share:.0%}" for name, share in answers[:4])
    wrong = ", ".join(map(shown_label, row.wrong)) or "none"
    texts = (row.row, row.label or "", said, wrong)
    return "<tr>" + "".join(f"<td>{clean(text)}</td>" for text in texts) + "</tr>"


def lists(report: ReportData) -> str:
    """Runs without a score, records that were not read, what was mixed, and notes."""
    found = {
        "Runs without a score": failures(report),
        "Not read": [f"{fault.where}: {fault.what}" for fault in report.unread],
        "Mixed, as --allow-mixed allows": report.mixed,
        "Notes": report.notes,
    }
    return "\n".join(section(title, lines) for title, lines in found.items() if lines)


def section(title: str, lines: Sequence[str]) -> str:
    """A list under a heading."""
    items = "".join(f"<li>{clean(line)}</li>" for line in lines)
    return f"<section><h2>{title}</h2><ul>{items}</ul></section>"
