"""Static plots as inline SVG, drawn by ziaplot (MIT, https://ziaplot.readthedocs.io).

Colours are the page's CSS variables, so that a plot follows light and dark. Every SVG has a title and a
description; its ids carry the plot's name, so that several fit on a page. Widths are drawn for a phone:
a page scales them up.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from distillctl.evaluate.results import Calibration, Cascade, Economics, Evaluation, Interval
from distillctl.report import words
from distillctl.report.sanitize import clean, cut

if TYPE_CHECKING:
    import ziaplot

WIDTH = 320
ROOM = 1.02  # so that a dot at 100 % is not cut off
MOST_LABELS = 25
_STYLE = """
    * { font: inherit; font_size: 13; color: var(--text); }
    Canvas { color: none; }
    Scatter { edge_color: var(--card); edge_width: 1.5; }
    BarsHoriz { edge_color: none; edge_width: 0; }
    Graph { color: none; edge_color: var(--axis); edge_width: 1; font_size: 13; }
    Graph.GridX { color: var(--grid); stroke: solid; stroke_width: 1; }
    Graph.GridY { color: var(--grid); stroke: solid; stroke_width: 1; }
    Graph.TickX { color: var(--muted); font_size: 12; height: 0; stroke_width: 0; margin: 6; pad: 0; }
    Graph.TickY { color: var(--text); font_size: 13; height: 0; stroke_width: 0; margin: 8; pad: 0; }
    Text { color: var(--text); font_size: 12; }
"""


@dataclass(frozen=True)
class Series:
    """A line of the training curve. color: a CSS variable of the page."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]


def accuracy_plot(entrants: Sequence[Evaluation]) -> Markup:
    """Every entrant's accuracy with its interval, one line each; the teacher's as a line to compare with."""
    shown = list(entrants)[::-1]
    low = min(e.accuracy.share.low for e in shown)
    start = max(0, math.floor(10 * low - 0.3) / 10)
    plot = _graph(height=48 + 36 * len(shown), x=(start, ROOM), y=(-0.6, len(shown) - 0.4))
    plot.xticks(*_percent_ticks(start))
    plot.yticks(range(len(shown)), [_short(words.title_of(e)) for e in shown])
    for e in shown:
        if e.role == "teacher":
            _line(plot, [e.accuracy.share.value] * 2, [-0.6, len(shown) - 0.4], "var(--teacher)", 1,
                  dash=True)
    for row, e in enumerate(shown):
        color = f"var(--{e.role})"
        _line(plot, [e.accuracy.share.low, e.accuracy.share.high], [row, row], color, 4)
        _dots(plot, [e.accuracy.share.value], [row], color, 6)
    said = "; ".join(f"{words.title_of(e)} {words.percent(e.accuracy.share.value)} "
                     f"{words.percent_range(e.accuracy.share)}" for e in entrants)
    return _svg(plot, "accuracy", "Accuracy with 95 % intervals", said)


def latency_plot(entrants: Sequence[Evaluation]) -> Markup | None:
    """Median (dot) and 95th percentile (triangle) of one request, on a log axis; None where none is known."""
    shown = [e for e in entrants if e.latency][::-1]
    if not shown:
        return None
    figures = [f.value for e in shown for f in (e.latency.p50, e.latency.p95) if f and f.value > 0]
    ticks = decades(figures)
    plot = _graph(height=48 + 36 * len(shown), x=(ticks[0], ticks[-1] + 0.05), y=(-0.6, len(shown) - 0.4))
    plot.xticks(ticks, _every_other([words.seconds(10.0 ** t) for t in ticks]))
    plot.yticks(range(len(shown)), [_short(words.title_of(e)) for e in shown])
    for row, e in enumerate(shown):
        color, p50 = f"var(--{e.role})", _log(e.latency.p50.value)
        if e.latency.p95:
            p95 = _log(e.latency.p95.value)
            _line(plot, [p50, p95], [row, row], color, 2)
            _dots(plot, [p95], [row], color, 6, "^")
        _dots(plot, [p50], [row], color, 6)
    said = "; ".join(
        f"{words.title_of(e)}: median {words.seconds(e.latency.p50.value)}, 95th percentile "
        f"{words.seconds(e.latency.p95.value if e.latency.p95 else None)}" for e in reversed(shown))
    return _svg(plot, "latency", "Latency of one request", said)


def label_plot(student: Evaluation, others: Sequence[Evaluation]) -> Markup | None:
    """The student's F1 per label as bars, the other entrants' as dots; the worst labels where many."""
    known = sorted(student.labels, key=lambda s: (s.f1 or 0.0, s.label))[:MOST_LABELS]
    if not known:
        return None
    rows = known[::-1]  # the worst is drawn on top
    plot = _graph(height=48 + 26 * len(rows), x=(0, ROOM), y=(-0.6, len(rows) - 0.4))
    plot.xticks([0, .25, .5, .75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    plot.yticks(range(len(rows)), [_short(s.label) for s in rows])
    _bars(plot, [s.f1 or 0.0 for s in rows], "var(--student-soft)")
    for e in others:
        by_label = {s.label: s.f1 for s in e.labels}
        drawn = [(by_label[s.label], row) for row, s in enumerate(rows) if by_label.get(s.label) is not None]
        if drawn:
            _dots(plot, [x for x, _ in drawn], [y for _, y in drawn], f"var(--{e.role})", 4)
    said = "; ".join(f"{_short(s.label)} {words.score(s.f1)}" for s in known)
    return _svg(plot, "labels", "F1 of each label", f"The student's F1: {said}")


def part_plot(entrants: Sequence[Evaluation]) -> Markup | None:
    """Mean score per field or check, with intervals: the entrants side by side in each."""
    names = list(dict.fromkeys(name for e in entrants for name in e.parts))[:MOST_LABELS]
    if not names:
        return None
    shown = [e for e in entrants if e.parts]
    plot = _graph(height=48 + (18 * len(shown) + 12) * len(names), x=(0, ROOM), y=(-0.6, len(names) - 0.4))
    plot.xticks(*_percent_ticks(0))
    plot.yticks(range(len(names)), [_short(name) for name in reversed(names)])
    for index, e in enumerate(shown):
        shift = ((len(shown) - 1) / 2 - index) * 0.7 / len(shown)
        for row, name in enumerate(reversed(names)):
            if part := e.parts.get(name):
                _line(plot, [part.low, part.high], [row + shift] * 2, f"var(--{e.role})", 3)
                _dots(plot, [part.value], [row + shift], f"var(--{e.role})", 4)
    said = "; ".join(
        f"{words.title_of(e)}: " + ", ".join(f"{_short(name)} {words.percent(part.value)}"
                                             for name, part in e.parts.items()) for e in shown)
    return _svg(plot, "parts", "Mean score of each field or check, with 95 % intervals", said)


def calibration_plot(calibration: Calibration) -> Markup | None:
    """Share right against mean confidence, bin by bin, and the diagonal of perfect calibration."""
    bins = calibration.bins
    if not bins:
        return None
    plot = _graph(height=300, x=(0, ROOM), y=(0, ROOM))
    for ticks in (plot.xticks, plot.yticks):
        ticks([0, .25, .5, .75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _line(plot, [0, 1], [0, 1], "var(--axis)", 1, dash=True)
    x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
    if len(bins) > 1:
        _line(plot, x, y, "var(--student)", 2)
    _dots(plot, x, y, "var(--student)", 5)
    said = "; ".join(f"{b.n} items stated {words.percent(b.confidence)}, right {words.percent(b.accuracy)}"
                     for b in bins)
    return _svg(plot, "calibration", "Calibration of the student's probabilities", said)


def cascade_plot(cascade: Cascade, teacher: float) -> Markup | None:
    """Accuracy of the whole against the share that the student answers, on test; the dot is the threshold,
    the dashed line the teacher. None where the student has no probability to go by."""
    points = cascade.curve
    if len(points) < 2:
        return None
    low = min(cascade.accuracy.share.low, *(point.accuracy for point in points))
    start = max(0, math.floor(10 * low) / 10)
    plot = _graph(height=280, x=(0, ROOM), y=(start, ROOM))
    plot.xticks([0, .25, .5, .75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    plot.yticks(*_percent_ticks(start))
    _line(plot, [0, 1], [teacher, teacher], "var(--teacher)", 1, dash=True)
    _line(plot, [point.share for point in points], [point.accuracy for point in points], "var(--student)", 2)
    share, whole = cascade.answered.share.value, cascade.accuracy.share
    _line(plot, [share, share], [whole.low, whole.high], "var(--student)", 2)
    _dots(plot, [share], [whole.value], "var(--student)", 6)
    said = "; ".join(f"{words.percent(point.share)} answered by the student: {words.percent(point.accuracy)}"
                     for point in [*points[:-1:max(1, len(points) // 8)], points[-1]])
    return _svg(plot, "cascade", "Accuracy of the whole against the share answered by the student",
                f"At the threshold {cascade.threshold:g}: {words.percent(share)} answered, "
                f"{words.percent(whole.value)} right. {said}")


def volume_plot(economics: Economics) -> Markup | None:
    """Cost of a day against its requests, both on log axes; None where the costs are not known."""
    points = economics.curve
    series = [("teacher", "var(--teacher)", [point.teacher_usd for point in points]),
              ("student", "var(--student)", [point.student_usd for point in points]),
              ("cascade", "var(--baseline)", [point.cascade_usd for point in points])]
    series = [one for one in series if one[2] and all(one[2])]  # neither unknown nor free: a log axis
    if len(points) < 2 or not series:
        return None
    volumes = [float(point.requests_per_day) for point in points]
    x_ticks, y_ticks = decades(volumes), decades([usd for *_, costs in series for usd in costs])
    plot = _graph(height=280, x=(x_ticks[0], x_ticks[-1] + 0.05), y=(y_ticks[0], y_ticks[-1] + 0.05))
    plot.xticks(x_ticks, _every_other([f"{10 ** tick:,}" for tick in x_ticks]))
    plot.yticks(y_ticks, [words.money(10.0 ** tick) for tick in y_ticks])
    if economics.requests_per_day:
        _line(plot, [_log(economics.requests_per_day)] * 2, [y_ticks[0], y_ticks[-1]], "var(--axis)", 1,
              dash=True)
    for _, color, costs in series:
        _line(plot, [_log(volume) for volume in volumes], [_log(usd) for usd in costs], color, 2)
    said = "; ".join(f"{name} from {words.money(costs[0])} at {volumes[0]:,.0f} requests a day to "
                     f"{words.money(costs[-1])} at {volumes[-1]:,.0f}" for name, _, costs in series)
    return _svg(plot, "volume", "Cost of a day against its requests", said)


def training_plot(name: str, title: str, series: Sequence[Series]) -> Markup | None:
    """Lines over optimiser steps; None where no series has two points."""
    drawn = [s for s in series if len(s.x) > 1]
    if not drawn:
        return None
    ends = [s.x[-1] for s in drawn]
    top = max(max(s.y) for s in drawn)
    bottom = min(0.0, min(min(s.y) for s in drawn))
    plot = _graph(height=240, x=(0, 1.02 * max(ends)), y=(bottom, top * 1.06 or 1.0))
    plot.max_xticks, plot.max_yticks = 6, 6
    for s in drawn:
        _line(plot, s.x, s.y, s.color, 2)
        if len(s.x) <= 12:
            _dots(plot, s.x, s.y, s.color, 4)
    said = "; ".join(f"{s.name} from {s.y[0]:.3g} to {s.y[-1]:.3g} over {s.x[-1]:g} steps" for s in drawn)
    return _svg(plot, name, title, said)


@dataclass(frozen=True)
class Mark:
    """An entrant in a scatter plot. name: short; color: a CSS variable of the page; figure: on the log axis,
    positive; radius: of its dot, whose shape is ziaplot's; ringed: made to stand out."""

    name: str
    color: str
    figure: float
    accuracy: Interval
    radius: float = 5
    shape: str = "o"
    ringed: bool = False


def scatter_plot(name: str, title: str, rows: Sequence[Mark], written: Mapping[float, str]) -> Markup:
    """Accuracy with its interval against a positive figure on a log axis. written: how each power of ten on
    the axis is written."""
    low = min(row.accuracy.low for row in rows)
    start = max(0, math.floor(10 * low) / 10)
    ticks = sorted(written)
    top = max(row.radius for row in rows) / 500 * (1 - start)  # so that a large dot at 100 % is not cut off
    plot = _graph(height=300, x=(ticks[0], ticks[-1] + 0.08), y=(start, ROOM + top))
    plot.xticks(ticks, _every_other([written[t] for t in ticks]))
    plot.yticks(*_percent_ticks(start))
    for row in rows:
        x, y = _log(row.figure), row.accuracy.value
        _line(plot, [x, x], [row.accuracy.low, row.accuracy.high], row.color, 2)
        if row.ringed:
            _dots(plot, [x], [y], "var(--text)", row.radius + 3)
        _dots(plot, [x], [y], row.color, row.radius, row.shape)
        _text(plot, x + 0.03 * (ticks[-1] - ticks[0]) * (1 + row.radius / 8), y, row.name)
    said = "; ".join(f"{row.name} at {row.figure:.3g}: {words.percent(row.accuracy.value)}"
                     f"{', the sweet spot' if row.ringed else ''}" for row in rows)
    return _svg(plot, name, title, said)


# --- drawing ------------------------------------------------------------------------------------------


def _graph(height: float, x: tuple[float, float], y: tuple[float, float]) -> ziaplot.Graph:
    import ziaplot

    ziaplot.config.text = "text"  # not as paths: readable, small, and in the page's own type
    ziaplot.config.precision = 2
    plot = ziaplot.Graph()
    plot.css(_STYLE)
    plot.legend("none")
    plot.size(WIDTH, height)
    plot.xrange(*x)
    plot.yrange(*y)
    return plot


def _line(plot: ziaplot.Graph, x: Sequence[float], y: Sequence[float], color: str, width: float, *,
          dash: bool = False) -> None:
    import ziaplot

    line = ziaplot.PolyLine(x, y).color(color).strokewidth(width)
    plot.add(line.stroke("--") if dash else line)


def _dots(plot: ziaplot.Graph, x: Sequence[float], y: Sequence[float], color: str, radius: float,
          shape: str = "o") -> None:
    import ziaplot

    if len(x) == 1:  # ziaplot writes a path of one point as "M x,y L", which browsers complain about
        x, y = [*x, *x], [*y, *y]
    plot.add(ziaplot.Scatter(x, y).marker(shape, radius).color(color))


def _bars(plot: ziaplot.Graph, values: Sequence[float], color: str) -> None:
    import ziaplot

    plot.add(ziaplot.BarsHoriz(range(len(values)), values, width=0.62).color(color))


def _text(plot: ziaplot.Graph, x: float, y: float, text: str) -> None:
    import ziaplot

    plot.add(ziaplot.Text(x, y, text, valign="center"))


def _svg(plot: ziaplot.Graph, name: str, title: str, description: str) -> Markup:
    """The plot as markup that is safe to put into a page: ElementTree has escaped all text in it."""
    root = plot.svgxml()
    renamed = {}
    for element in root.iter():
        if own := element.get("id"):
            renamed[own] = f"{name}-{own}"
            element.set("id", renamed[own])
    for element in root.iter():
        for key, value in element.attrib.items():
            if value.startswith("url(#"):
                element.set(key, f"url(#{renamed[value[5:-1]]})")
    width, height = root.attrib.pop("width"), root.attrib.pop("height")
    # Text is as wide as the reader's type makes it: room on both sides for more than ziaplot reckons with.
    root.set("viewBox", f"-18 0 {float(width) + 40:g} {height}")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", cut(clean(description), 2000)))):
        element = ET.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(position, element)
    return Markup(ET.tostring(root, encoding="unicode"))


def _short(text: str) -> str:
    """At most 16 characters, cut in the middle: names often differ at their ends."""
    text = " ".join(clean(text).split())
    return text if len(text) <= 16 else f"{text[:8]}…{text[-7:]}"


def _percent_ticks(start: float) -> tuple[list[float], list[str]]:
    step = 0.1 if start >= 0.5 else 0.2 if start > 0 else 0.25
    first = math.ceil(round(start / step, 6))
    ticks = [round(step * i, 6) for i in range(first, round(1 / step) + 1)]
    return ticks, [f"{100 * t:.0f} %" for t in ticks]


def _every_other(names: list[str]) -> list[str]:
    """Tick names that have room: every second one stays empty where there are many."""
    return names if len(names) <= 5 else [name if i % 2 == 0 else "" for i, name in enumerate(names)]


def _log(value: float) -> float:
    return math.log10(max(value, 1e-9))


def decades(figures: Sequence[float]) -> list[int]:
    """The powers of ten around positive figures, at least two."""
    low, high = math.floor(_log(min(figures))), math.ceil(_log(max(figures)))
    return list(range(low, max(high, low + 1) + 1))
