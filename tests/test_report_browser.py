"""The pages in a real browser: Debian's Chromium, driven by Playwright.

Screenshots are left in pytest's temporary folder, for a person to look at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import metrics as made

from distillctl.report.compare import comparison_page
from distillctl.report.html import ReportInput, report_page

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install playwright")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome")
                 if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium to look at the pages with; on Debian: apt-get install chromium")

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--no-first-run"]
PHONE, DESKTOP = (360, 800), (1280, 900)
SIZES = pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])

RECIPE = "name: routing\ntask:\n  labels: [code, docs, hybrid, skip]\n# " + "x" * 500
TRAINING = [{"step": step, "loss": 2 / step, "learning_rate": 0.001} for step in range(1, 60)] + [
    {"step": step, "eval_loss": 3 / step, "eval_score": 1 - 1 / step} for step in (20, 40, 59)]
AUDIT = {"rows": 999, "splits": {split: {"rows": 300, "labels": {"code": 75, "docs": 75}} for split in
                                 ("train", "dev", "test")}, "warnings": ["w" * 200]}
SELECTION = {"kept": 588, "dropped": [{"reason": "wrong", "meaning": "differs from the gold answer",
                                       "count": 40, "ids": [f"routing-{i:04d}" for i in range(40)]}]}
PAYLOADS = {
    "script": "<script>window.ran = 1</script>",
    "image": "\"><img src=x onerror='window.ran = 1'>",
    "attribute": "' onmouseover=window.ran=1 autofocus onfocus=window.ran=1 x='",
    "style": "</style></title></textarea><style>body{display:none}</style><svg onload=window.ran=1>",
    "link": "<a href='javascript:window.ran=1'>javascript:window.ran=1</a>",
    "jinja": "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "ansi": "\x1b[31mred\x1b]0;title\x07",
    "direction": "safe\u202egnp.exe",
    "huge": "m" * 200_000,
}


@dataclass
class Seen:
    """What happened in a page: requests beside its own, complaints of the browser, dialogs."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass
class Viewer:
    browser: sync_api.Browser
    folder: Path

    def open(self, name: str, page_text: str,
             size: tuple[int, int] = DESKTOP) -> tuple[sync_api.Page, Seen]:
        """Show a page from a file with every <details> closed, as a reader gets it."""
        file = self.folder / f"{name}.html"
        file.write_text(page_text, encoding="utf-8")
        seen = Seen()
        page = self.browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(file.as_uri())
        seen.requests.remove(file.as_uri())
        return page, seen


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def viewer(browser, tmp_path) -> Iterator[Viewer]:
    yield Viewer(browser, tmp_path)
    for context in browser.contexts:
        context.close()


def open_all(page: sync_api.Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


def run_page(metrics) -> str:
    return report_page(ReportInput(
        metrics, "routing/local-smollm2-135m", RECIPE, audit=AUDIT, selection=SELECTION, training=TRAINING,
        stability={"measured": False}, spend={"in all": "$0.42"},
        stages=[{"name": "train-student", "seconds": 412.0, "reused": False}],
        provenance={"machine": "2 cores", "adapter": "sha256:" + "9f" * 32}))


PAGES = {
    "viable": lambda: run_page(made.viable()),
    "not-ready": lambda: run_page(made.not_ready()),
    "replayed": lambda: run_page(made.replayed()),
    "decided": lambda: run_page(made.decided(made.not_ready())),
    "decided-unknown": lambda: run_page(made.decided(made.replayed(), known=False)),
    "structured": lambda: run_page(made.structured()),
    "text": lambda: run_page(made.text()),
    "many-labels": lambda: run_page(made.classification(
        student=.7, n=200, labels=[f"a rather long label number {i}" for i in range(40)])),
    "comparison": lambda: comparison_page(made.side_by_side(
        {"routing/local-smollm2": made.viable(), "routing/" + "x" * 200: made.not_ready()})),
}


@SIZES
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_is_legible_and_leaves_the_browser_content(viewer, name, size):
    page, seen = viewer.open(name, PAGES[name](), size)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=viewer.folder / f"{name}-{scheme}.png")
        open_all(page)
        assert page.evaluate(FAINT_TEXT) == []
    page.screenshot(path=viewer.folder / f"{name}-whole.png", full_page=True)
    assert page.evaluate(OVERFLOWING) == []
    assert seen == Seen()


@SIZES
def test_the_verdict_and_its_certainty_are_on_the_first_screen(viewer, size):
    page, _ = viewer.open("replayed", PAGES["replayed"](), size)
    for selector in ("h1", ".sentence", ".chips"):
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= size[1]


def test_light_and_dark_differ(viewer):
    page, _ = viewer.open("viable", PAGES["viable"]())
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_plots_have_names_and_landmarks_are_there(viewer):
    page, _ = viewer.open("not-ready", PAGES["not-ready"]())
    names = page.locator("svg[role=img]").evaluate_all(
        "all => all.map(svg => svg.querySelector('title').textContent)")
    assert len(names) >= 6 and all(names)
    assert page.locator("html").get_attribute("lang") == "en"
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_text_of_strangers_is_inert_in_every_slot(viewer, payload):
    page, seen = viewer.open("hostile", report_page(ReportInput(
        made.hostile(payload), payload, payload, audit={payload: {payload: payload}},
        selection={payload: [{payload: payload}]}, training=[{"step": 1, "loss": 1, payload: payload}],
        stability={payload: payload}, spend={payload: payload},
        stages=[{"name": payload, "seconds": None, "reused": False}], provenance={payload: payload})), PHONE)
    open_all(page)
    assert seen == Seen()
    assert page.evaluate("window.ran") is None
    assert page.locator("script, img, a:not([href^='#']), [onload], [onerror], [onfocus]").count() == 0
    assert page.evaluate(OVERFLOWING) == []
    assert page.locator("h1").is_visible()


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_text_of_strangers_is_inert_in_a_comparison(viewer, payload):
    table = made.side_by_side({payload: made.hostile(payload)})
    page, seen = viewer.open("hostile", comparison_page(table), PHONE)
    assert seen == Seen()
    assert page.evaluate("window.ran") is None
    assert page.locator("script, img, a, [onload], [onerror], [onfocus]").count() == 0
    assert page.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize(("name", "shown"), [
    ("script", "<script>window.ran = 1</script>"), ("jinja", "{{ 7 * 7 }}"), ("ansi", "\\x1b[31mred"),
    ("direction", "safe\\u202egnp.exe"), ("huge", "(199,880 more characters)")])
def test_text_of_strangers_is_shown_as_it_is(viewer, name, shown):
    page, _ = viewer.open("hostile", run_page(made.hostile(PAYLOADS[name])))
    assert page.locator(".facts").inner_text().count(shown) >= 4  # each entrant's model


def test_the_checks_see_a_page_that_is_not_inert(viewer):
    page, seen = viewer.open(
        "bad", "<!doctype html><body style='width:2000px;color:#999;background:#aaa'>faint"
               "<script>window.ran = 1; console.error('x')</script><img src='x.png'>")
    assert page.evaluate("window.ran") == 1
    assert any("console" in c or "error" in c for c in seen.complaints)
    assert [url.rsplit("/", 1)[1] for url in seen.requests] == ["x.png"]
    assert page.evaluate(OVERFLOWING) and page.evaluate(FAINT_TEXT)


def test_the_policy_itself_stops_a_script(viewer):
    page, seen = viewer.open("policy", PAGES["viable"]().replace(
        "</main>", "<script>window.ran = 1</script><img src='x.png'></main>"))
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in seen.complaints)


# Elements that stick out of the window, unless a box of their own scrolls them.
OVERFLOWING = """() => {
  const found = [];
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push('page');
  for (const e of document.body.querySelectorAll('*')) {
    if (e.parentElement.closest('.scroll, svg')) continue;
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > width + 1 || box.left < -1)) found.push(e.tagName + '.' + e.className);
  }
  return found.slice(0, 5);
}"""

# Text whose contrast with what lies under it is below 4.5 (WCAG 2.2, 1.4.3).
FAINT_TEXT = """() => {
  const parse = color => {
    const [r, g, b, alpha = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, alpha];
  };
  const over = (top, under) =>
    [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * under[i]).concat(1);
  const linear = v => v <= 10.31475 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.closest('title, desc')) continue;
    const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(parse(getComputedStyle(p).backgroundColor));
    const ground = layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
    const style = getComputedStyle(e);
    const ink = over(parse(e.closest('svg') ? style.fill : style.color), ground);
    const [a, b] = [luminance(ink), luminance(ground)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${e.tagName} ${text.slice(0, 40)}`);
  }
  return found.slice(0, 5);
}"""
