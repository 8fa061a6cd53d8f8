"""The report as a person sees it: in a real Chromium, at two widths, light, dark, printed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_fixture import HOSTILE, VARIANTS, make_run

from foible.audit.reporting import write_report

pytestmark = pytest.mark.browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDTHS = (1280, 390)
SHOWN = ("two", "one", "table", "colour", "holes", "empty", "hostile")

#: Elements that stick out of the page, unless a box around them scrolls.
STICKING_OUT = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (!box.width || (box.right <= wide + 1 && box.left >= -1)) continue;
    if (e.closest('.scroll') && !e.matches('.scroll')) continue;
    if (e.closest('svg') && !e.matches('svg')) continue;
    found.push(e.tagName + '.' + e.className + ' ' + Math.round(box.right));
  }
  return found;
}"""

#: Texts of one chart that cover each other by more than a sliver, and texts that leave their chart.
COLLISIONS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg.chart')) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const texts = [...svg.querySelectorAll('text')]
      .map(t => [t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([name, a], i) => {
      if (a.left < frame.left - 2 || a.right > frame.right + 2 || a.top < frame.top - 2
          || a.bottom > frame.bottom + 2) found.push('clipped: ' + name);
      for (const [other, b] of texts.slice(i + 1)) {
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (x > 1.5 && y > 3) found.push(name + ' over ' + other);
      }
    });
  }
  return found;
}"""

CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => parse(c).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c !== 'rgba(0, 0, 0, 0)') return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  const all = 'p, dt, dd, td, th, figcaption, a, h1, h2, h3, span, text';
  for (const e of document.querySelectorAll(all)) {
    if (!e.textContent.trim() || !e.getBoundingClientRect().width) continue;
    const style = getComputedStyle(e), svg = e.tagName === 'text';
    const [a, b] = [light(svg ? style.fill : style.color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(ratio.toFixed(1) + ' ' + e.textContent.trim().slice(0, 40));
  }
  return [...new Set(found)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        why = "THE REPORT WAS NOT LOOKED AT: apt-get install chromium, pip install playwright"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in SHOWN:
        write_report(make_run(folder / name, **VARIANTS[name]))
    return folder


class Visit:
    """A page of the report with JavaScript off, and everything that it said and loaded."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(java_script_enabled=False, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.loaded: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.loaded.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def visit(browser: Any, runs: Path, name: str, width: int = 1280, scheme: str = "light") -> Visit:
    size = {"width": width, "height": 900}
    return Visit(browser, runs / name / "report.html", viewport=size, color_scheme=scheme)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SHOWN)
def test_it_fits_and_is_silent(browser: Any, runs: Path, name: str, width: int) -> None:
    with visit(browser, runs, name, width) as seen:
        page = seen.page
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(STICKING_OUT) == []
        assert page.evaluate(COLLISIONS) == []
        # opened, the tables inside <details> have to fit as well
        page.evaluate(
            "document.querySelectorAll('details').forEach(d => d.setAttribute('open', ''))"
        )
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(STICKING_OUT) == []
        assert seen.said == []
        assert [u for u in seen.loaded if not u.startswith(("file:", "data:"))] == []
        assert len([u for u in seen.loaded if u.startswith("file:")]) == 1


@pytest.mark.parametrize("name", ["two", "empty"])
def test_every_section_and_figure_is_visible(browser: Any, runs: Path, name: str) -> None:
    with visit(browser, runs, name) as seen:
        headings = seen.page.locator("h1, h2, .step h3").all()
        assert len(headings) == 1 + 16 + 4
        assert all(h.is_visible() and h.inner_text().strip() for h in headings)
        charts = seen.page.locator("svg.chart").all()
        assert len(charts) == (23 if name == "two" else 0)
        for chart in charts:
            box = chart.bounding_box()
            assert box["width"] > 250
            assert box["height"] > 120
        shown = "img => img.complete && img.naturalWidth > 0"
        assert seen.page.locator("img").evaluate_all(f"all => all.every({shown})")
        pixelated = "all => all.every(i => getComputedStyle(i).imageRendering === 'pixelated')"
        assert seen.page.locator("img").evaluate_all(pixelated)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser: Any, runs: Path, scheme: str) -> None:
    with visit(browser, runs, "two", scheme=scheme) as seen:
        assert seen.page.evaluate(CONTRAST) == []


def test_dark_is_dark_and_print_is_light(browser: Any, runs: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('svg.chart text')).fill"
    with visit(browser, runs, "two") as light, visit(browser, runs, "two", scheme="dark") as dark:
        day, night = light.page.evaluate(ground), dark.page.evaluate(ground)
        assert (day, night) == ("rgb(247, 247, 245)", "rgb(17, 20, 22)")
        assert light.page.evaluate(ink) != dark.page.evaluate(ink)
        dark.page.emulate_media(media="print", color_scheme="dark")
        assert dark.page.evaluate(ground) == "rgb(255, 255, 255)"
        assert dark.page.evaluate(ink) == light.page.evaluate(ink)
        assert not dark.page.locator("nav").is_visible()


def test_paper_shows_what_is_folded_away(browser: Any, runs: Path, tmp_path: Path) -> None:
    with visit(browser, runs, "two") as seen:
        folded = seen.page.get_by_text("Model in evaluation mode").first
        assert not folded.is_visible()
        seen.page.emulate_media(media="print")
        assert folded.bounding_box()["height"] > 0
        path = tmp_path / "report.pdf"
        path.write_bytes(seen.page.pdf(format="A4"))
        assert path.read_bytes()[:5] == b"%PDF-"


def test_links_lead_to_their_section_and_details_open_without_javascript(
    browser: Any, runs: Path
) -> None:
    with visit(browser, runs, "two") as seen:
        seen.page.locator("nav a[href='#checks']").click()
        assert seen.page.locator("#checks").bounding_box()["y"] < 900
        passed = seen.page.locator("details.check:not(.failed)").first
        assert passed.get_attribute("open") is None
        passed.locator("summary").click()
        assert passed.get_attribute("open") is not None
        assert seen.page.locator("details.check.failed").first.get_attribute("open") is not None


def test_hostile_names_are_shown_as_they_are(browser: Any, runs: Path) -> None:
    context = browser.new_context(java_script_enabled=True)
    page = context.new_page()
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto((runs / "hostile" / "report.html").as_uri())
    text = page.locator("body").inner_text()
    parsed = page.evaluate("JSON.parse(document.getElementById('foible-data').textContent)")
    context.close()
    assert alerts == []
    assert HOSTILE[0] in text
    assert HOSTILE[1] in text
    assert parsed["plan"]["data"]["classes"] == HOSTILE
