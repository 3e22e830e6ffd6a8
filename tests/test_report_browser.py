"""The pages in a real browser: Debian's Chromium, driven by Playwright.

Screenshots are left in pytest's temporary folder, for a person to look at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
    context: sync_api.BrowserContext
    folder: Path

    @contextmanager
    def open(self, name: str, page_text: str) -> Iterator[tuple[sync_api.Page, Seen]]:
        """Show a page from a file with every <details> closed, as a reader gets it."""
        file = self.folder / f"{name}.html"
        file.write_text(page_text, encoding="utf-8")
        seen = Seen()
        page = self.context.new_page()
        page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(file.as_uri())
        seen.requests.remove(file.as_uri())
        page.evaluate("document.querySelectorAll('details[open]').forEach(d => d.dataset.got = '')")
        yield page, seen
        page.close()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory) -> Iterator[Viewer]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield Viewer(browser.new_context(), tmp_path_factory.mktemp("pages"))
        browser.close()


def as_got(page: sync_api.Page, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
    """Bring a page that several tests look at back to what a reader gets, in a window of this size."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = 'got' in d.dataset)")


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
        {"routing/local-smollm2": made.decided(made.viable()), "routing/" + "x" * 200: made.not_ready()},
        on_dev=True)),
}


@pytest.fixture(scope="module", params=PAGES)
def shown(request, viewer) -> Iterator[tuple[str, sync_api.Page, Seen]]:
    with viewer.open(request.param, PAGES[request.param]()) as (page, seen):
        yield request.param, page, seen


@SIZES
def test_a_page_fits_is_legible_and_leaves_the_browser_content(shown, viewer, size):
    name, page, seen = shown
    for scheme in ("dark", "light"):
        as_got(page, size, scheme)
        page.screenshot(path=viewer.folder / f"{name}-{size[0]}-{scheme}.png")
        open_all(page)
        assert page.evaluate(FAINT_TEXT) == []
    assert page.evaluate(OVERFLOWING) == []
    assert seen == Seen()


@SIZES
def test_the_verdict_and_its_certainty_are_on_the_first_screen(shown, size):
    name, page, _ = shown
    as_got(page, size)
    for selector in ("h1", ".sentence", ".chips") if name != "comparison" else ("h1",):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= size[1]


def test_light_and_dark_differ(shown):
    _, page, _ = shown
    grounds = set()
    for scheme in ("light", "dark"):
        as_got(page, scheme=scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_plots_have_names_and_landmarks_are_there(shown):
    name, page, _ = shown
    as_got(page)
    names = page.locator("svg[role=img]").evaluate_all(
        "all => all.map(svg => svg.querySelector('title').textContent)")
    assert len(names) >= (6 if name == "not-ready" else 1) and all(names)
    assert page.locator("html").get_attribute("lang") == "en"
    for landmark in ("banner", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1


def test_the_errors_are_narrowed_down_without_a_script(viewer):
    metrics = made.not_ready()
    with viewer.open("filter", run_page(metrics)) as (page, seen):
        open_all(page)
        errors = metrics.comparisons[-1].items
        items = page.locator(".ledger .item:visible")
        assert items.count() == len(errors)
        page.get_by_label("expected docs").check()
        assert items.count() == sum(item.expected == "docs" for item in errors) < len(errors)
        page.get_by_label("code taken for skip").check()
        assert items.count() == sum((item.expected, item.student) == ("code", "skip") for item in errors) > 0
        assert page.locator(".ledger details:visible").count() == len(
            {item.cell for item in errors if (item.expected, item.student) == ("code", "skip")})
        page.get_by_label("all", exact=True).check()
        assert items.count() == len(errors)
        assert seen == Seen()


@pytest.fixture(scope="module", params=PAYLOADS)
def hostile(request, viewer) -> Iterator[tuple[str, sync_api.Page, Seen]]:
    payload = PAYLOADS[request.param]
    with viewer.open("hostile", report_page(ReportInput(
            made.hostile(payload), payload, payload, audit={payload: {payload: payload}},
            selection={payload: [{payload: payload}]}, training=[{"step": 1, "loss": 1, payload: payload}],
            stability={payload: payload}, spend={payload: payload},
            stages=[{"name": payload, "seconds": None, "reused": False}], provenance={payload: payload},
    ))) as (page, seen):
        yield request.param, page, seen


def test_text_of_strangers_is_inert_in_every_slot(hostile):
    _, page, seen = hostile
    as_got(page, PHONE)
    open_all(page)
    assert seen == Seen()
    assert page.evaluate("window.ran") is None
    assert page.locator("script, img, a:not([href^='#']), [onload], [onerror], [onfocus]").count() == 0
    assert page.evaluate(OVERFLOWING) == []
    assert page.locator("h1").is_visible()


def test_text_of_strangers_is_shown_as_it_is(hostile):
    name, page, _ = hostile
    written = {"ansi": "\\x1b[31mred", "direction": "safe\\u202egnp.exe", "huge": "(199,880 more characters)"}
    said = page.locator(".facts").text_content()
    assert said.count(written.get(name, PAYLOADS[name])) >= 4  # each entrant's model


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_text_of_strangers_is_inert_in_a_comparison(viewer, payload):
    table = made.side_by_side({payload: made.hostile(payload)})
    with viewer.open("hostile", comparison_page(table)) as (page, seen):
        as_got(page, PHONE)
        assert seen == Seen()
        assert page.evaluate("window.ran") is None
        assert page.locator("script, img, a, [onload], [onerror], [onfocus]").count() == 0
        assert page.evaluate(OVERFLOWING) == []


def test_the_checks_see_a_page_that_is_not_inert(viewer):
    with viewer.open(
            "bad", "<!doctype html><body style='width:2000px;color:#999;background:#aaa'>faint"
            "<script>window.ran = 1; console.error('x')</script><img src='x.png'>") as (page, seen):
        assert page.evaluate("window.ran") == 1
        assert any("console" in c or "error" in c for c in seen.complaints)
        assert [url.rsplit("/", 1)[1] for url in seen.requests] == ["x.png"]
        assert page.evaluate(OVERFLOWING) and page.evaluate(FAINT_TEXT)


def test_the_policy_itself_stops_a_script(viewer):
    with viewer.open("policy", PAGES["viable"]().replace(
            "</main>", "<script>window.ran = 1</script><img src='x.png'></main>")) as (page, seen):
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
  const grounds = new Map([[null, [255, 255, 255, 1]]]);
  const ground = e => {
    if (!grounds.has(e)) {
      const own = parse(getComputedStyle(e).backgroundColor);
      grounds.set(e, over(own, ground(e.parentElement)));
    }
    return grounds.get(e);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.closest('title, desc')) continue;
    const style = getComputedStyle(e);
    const ink = over(parse(e.closest('svg') ? style.fill : style.color), ground(e));
    const [a, b] = [luminance(ink), luminance(ground(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${e.tagName} ${text.slice(0, 40)}`);
  }
  return found.slice(0, 5);
}"""
