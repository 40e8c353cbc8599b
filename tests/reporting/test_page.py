"""The page in a real browser: charts, filters, sorting, colors, and names that mean harm."""

import gzip
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from peftkit.reporting.report import Report, report
from support.commands import ROOT

RECORDS = ROOT / "benchmarks" / "records" / "imdb_first"
CHARTS = [
    "score_by_parameters",
    "score_by_memory",
    "score_by_time",
    "learning_curves",
    "rate_search",
    "confusion",
    "disagreement",
]
HOSTILE = "</script><script>hacked=1</script><img src=x onerror=hacked=1>\"'&\u2028\x1b[31m`${1}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium; without one the tests are skipped, but never in CI."""
    path = shutil.which("chromium")
    if path is None:
        word = "the page cannot be tested: there is no chromium on the path - "
        word += "type: apt-get install --no-install-recommends chromium"
        pytest.fail(word) if os.environ.get("CI") else pytest.skip(word)
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()


def whole_runs(to: Path) -> Path:
    """Real records, with the logs and the search that records in git lack."""
    shutil.copytree(RECORDS, to)
    for folder in sorted(to.iterdir()):
        path = folder / "record.json"
        said = json.loads(path.read_text())
        score = said["scores"]["accuracy"]["value"]
        steps = range(25, 126, 25)
        lines = [{"step": s, "eval_score": score - 0.3 * math.exp(-s / 60)} for s in steps]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        said["tuning"] = {
            "metric": "accuracy",
            "rows": 1000,
            "chosen": 1e-3,
            "trials": [
                trial(1e-4, score - 0.05, "finished"),
                trial(1e-3, score, "finished"),
                trial(1e-2, score - 0.1, "pruned"),
                trial(1.0, None, "failed"),
            ],
        }
        path.write_text(json.dumps(said))
    return to


def trial(lr: float, score: float | None, status: str) -> dict[str, Any]:
    return {"lr": lr, "score": score, "step": 50, "status": status, "default": lr == 1e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report that has every chart."""
    folder = tmp_path_factory.mktemp("page")
    report(whole_runs(folder / "runs")).write(folder / "out")
    return folder / "out" / "report.html"


class Watched:
    """An open page, and all that it said, asked for and complained of."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#count:not(:empty)")  # it is said when all charts are drawn


@pytest.fixture
def opened(browser: Browser, made: Path) -> Iterator[Watched]:
    page = browser.new_page()
    yield Watched(page, made)
    page.close()


def visible(page: Page) -> list[str]:
    """The strategies in the table's order."""
    return page.locator("#strategies tbody tr:not([hidden]) th").all_inner_texts()


def drawn_marks(page: Page, chart: str) -> Locator:
    """The points or cells that a chart has drawn, those of legends not among them."""
    kind = "rect" if chart in ("confusion", "disagreement") else "symbol"
    return page.locator(f"#drawing-{chart} .mark-{kind}.role-mark > *")


def test_every_picture_is_drawn_and_nothing_leaves_the_file(opened: Watched, made: Path) -> None:
    page = opened.page
    names = page.locator(".drawing").evaluate_all("all => all.map(each => each.id)")
    assert names == [f"drawing-{name}" for name in CHARTS]
    for name, number in zip(CHARTS, [5, 5, 5, 25, 15, 20, 25], strict=True):
        expect(drawn_marks(page, name)).to_have_count(number)
    assert opened.said == [] and opened.asked == [made.as_uri()]


def test_filters_act_on_table_and_pictures(opened: Watched) -> None:
    page = opened.page
    assert len(visible(page)) == 6 and page.locator("#count").inner_text() == "5 strategies"
    page.locator("input[name=kind][value=lora]").uncheck()
    assert visible(page) == ["full (reference)", "frozen", "adapter", "majority class"]
    assert page.locator("#count").inner_text() == "3 of 5 strategies"
    for name, number in zip(CHARTS, [3, 3, 3, 15, 9, 12, 9], strict=True):
        expect(drawn_marks(page, name)).to_have_count(number)
    hidden = page.locator("figure tr[data-n][hidden]").count()
    assert hidden == 3 * 2 + 2 * 5 + 2 * 4 + 2 * 4 + 25 - 9
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#count")).to_have_text("5 strategies")
    page.locator("input[name=stored][value='4bit']").uncheck()
    assert "lora on 4bit" not in visible(page) and "lora" in visible(page)
    page.locator("#text").fill("ADAP")
    assert visible(page) == ["adapter", "majority class"]
    assert opened.said == []


def test_eight_columns_come_first_and_explain_themselves(opened: Watched) -> None:
    page = opened.page
    assert page.locator("#strategies thead th").count() == 8
    assert not page.locator("#more-columns").is_visible()
    page.get_by_text("More columns").click()
    assert page.locator("#more-columns").is_visible()
    heads = page.locator(".wide > table[id] thead th")
    names, meanings = (page.locator(each).all_inner_texts() for each in ("dt", "dd"))
    terms = dict(zip(names, meanings, strict=True))
    titles = heads.evaluate_all("all => all.map(each => each.title)")
    for text, title in zip(heads.all_inner_texts(), titles, strict=True):
        assert title and terms[text.strip()] == title


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(width: int, opened: Watched) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    page.get_by_text("More columns").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tables = "[...document.querySelectorAll('.wide > table[id]')]"
    if width == 1280:  # no column is cut off
        assert page.evaluate(f"{tables}.every(t => t.scrollWidth <= t.parentElement.clientWidth)")


def test_the_table_is_sorted_by_keyboard(opened: Watched) -> None:
    page = opened.page
    page.locator("#text").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "train s":
            break
    page.keyboard.press("Enter")
    head = page.locator("#strategies thead th", has_text="train s")
    assert head.get_attribute("aria-sort") == "descending"
    expected = ["lora on 4bit", "full (reference)", "lora", "adapter", "frozen"]
    assert visible(page) == [*expected, "majority class"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert visible(page) == [*expected[::-1], "majority class"]
    page.locator("#strategies thead button", has_text="difference").click()
    assert visible(page)[-2:] == ["full (reference)", "majority class"]  # it has none
    assert page.locator("#strategies th[aria-sort]").count() == 1
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("Tab")
    assert page.evaluate(outline) == "solid"


def ink(page: Page) -> list[str]:
    """The colors of an axis' words, of a point and of the page."""
    found = page.evaluate(
        """() => ['#drawing-score_by_time .role-axis-label text',
                  '#drawing-score_by_time .mark-symbol.role-mark path'].map(
               (place) => getComputedStyle(document.querySelector(place)).fill
           ).concat(getComputedStyle(document.body).backgroundColor)"""
    )
    return list(map(str, found))


def test_dark_mode_changes_the_pictures_too_and_print_is_light(opened: Watched) -> None:
    page = opened.page
    light = ink(page)
    assert light == ["rgb(27, 27, 27)", "rgb(0, 114, 178)", "rgb(255, 255, 255)"]
    page.emulate_media(color_scheme="dark")
    assert ink(page) == ["rgb(232, 232, 232)", "rgb(86, 180, 233)", "rgb(22, 24, 28)"]
    page.emulate_media(color_scheme="dark", media="print")
    assert ink(page) == light and not page.locator(".filters").is_visible()


def test_each_picture_has_its_numbers_as_a_table(opened: Watched) -> None:
    page = opened.page
    for name in CHARTS:
        figure = page.locator("figure", has=page.locator(f"#drawing-{name}"))
        assert not figure.locator("table").is_visible()
        figure.locator("summary").press("Enter")
        assert figure.locator("table").is_visible() and figure.locator("tbody tr").count() >= 5
        assert figure.locator("figcaption").inner_text()
        drawing = figure.locator(".drawing")
        assert drawing.get_attribute("role") == "graphics-document"
        title = figure.locator("h3").inner_text()
        assert (drawing.get_attribute("aria-label") or "").startswith(f"{title}. ")


def hostile_runs(to: Path) -> Path:
    """Records of which every name that is not ours to choose means harm."""
    whole_runs(to)
    quoted = json.dumps(HOSTILE)
    for folder in sorted(to.iterdir()):
        path = folder / "record.json"
        said = json.loads(path.read_text().replace("[pos]", f"[{quoted[1:-1]}]"))
        said["data"]["used"] = HOSTILE
        if folder.name.startswith(("lora", "qlora")):
            said["recipe"]["strategy"]["kind"] = said["recipe"]["quantize"]["kind"] = HOSTILE
        if folder.name.startswith("frozen"):
            said.update(status="failed", reason=HOSTILE)
        said["tuning"]["metric"] = HOSTILE
        path.write_text(json.dumps(said))
        packed = folder / "predictions.jsonl.gz"
        lines = gzip.decompress(packed.read_bytes()).decode().replace('"pos"', quoted)
        packed.write_bytes(gzip.compress(lines.replace("test.parquet", quoted[1:-1]).encode(), 1))
    (to / f"x{HOSTILE[10:17]}").mkdir()
    (to / f"x{HOSTILE[10:17]}" / "record.json").write_text("{}")
    return to


def test_hostile_names_are_shown_and_do_nothing(browser: Browser, tmp_path: Path) -> None:
    found = report(hostile_runs(tmp_path / "runs"), allow_mixed=True)
    found.write(tmp_path / "out")
    path = tmp_path / "out" / "report.html"
    page = browser.new_page()
    opened = Watched(page, path)
    page.mouse.move(0, 0)
    for name in CHARTS:
        drawn_marks(page, name).last.hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        assert page.locator("#vg-tooltip-element :is(script, img)").count() == 0
    assert "<script>hacked=1</script>" in page.locator("#strategies").inner_text()
    assert "</script><s" in page.locator("#drawing-confusion").inner_text()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 3
    assert page.evaluate("typeof hacked") == "undefined"
    assert "\x1b" not in path.read_text() and "\u2028" not in path.read_text()
    assert opened.said == [] and opened.asked == [path.as_uri()]
    page.close()


def test_even_a_script_that_got_in_would_not_run_nor_send(opened: Watched) -> None:
    page = opened.page
    with page.expect_event("requestfailed") as failed:
        page.evaluate(
            """() => { const added = document.createElement('script');
                       added.textContent = 'window.hacked = 1'; document.body.append(added);
                       const image = new Image(); image.src = 'https://example.org/x.png';
                       document.body.append(image); }"""
        )
    assert failed.value.failure == "csp"
    sent = page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    assert sent == "refused" and page.evaluate("typeof hacked") == "undefined"
    assert sum("Content Security Policy" in line for line in opened.said) >= 3


def test_a_report_read_from_its_json_gives_the_same_page(made: Path) -> None:
    from peftkit.reporting.render.chart import draw_charts
    from peftkit.reporting.render.page import page

    again = Report.model_validate_json((made.parent / "report.json").read_text())
    assert page(again, draw_charts(again)) == made.read_text()
