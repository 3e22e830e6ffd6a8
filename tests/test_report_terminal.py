"""Results on a terminal: readable at 60 columns, without colour where nobody looks, never markup."""

import io

import pytest
from rich.console import Console
from support import metrics as made

from distillctl.report.terminal import comparison_table, runs_table, table, verdict_panel

HOSTILE = "[red]x[/red] [link=http://evil.test]y[/link] :smile: \x1b]0;title\x07\x1b[31mred\u202e"
RUNS = {"routing/local-qwen3-0.6b": made.viable(), "routing/local-smollm2-135m": made.replayed()}


def shown(renderable, width=60, **console) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, emoji=False, markup=False, **console).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("renderable", [
    comparison_table(made.not_ready()), verdict_panel(made.replayed()),
    runs_table(made.side_by_side(RUNS)), comparison_table(made.hostile(HOSTILE * 20)),
    table("Backends", ["name", "kinds"], [["local", "classification, structured, text"] * 1])],
    ids=["comparison", "verdict", "runs", "hostile", "table"])
def test_no_line_is_wider_than_the_terminal(renderable):
    assert max(len(line) for line in shown(renderable).splitlines()) <= 60


def test_at_60_columns_no_figure_is_lost():
    words = shown(comparison_table(made.not_ready())).split()
    for figure in ("99.6", "30.8", "65.2", "78.8", "+20.8", "1.4", "$0.0021", "22.9×]"):
        assert figure in words


def test_unknown_figures_and_the_replayed_teacher_are_named():
    text = " ".join(shown(comparison_table(made.replayed())).split())
    assert "Speed-up – unknown unknown unknown" in text
    assert "Replayed teacher: its answers come from a recording" in text


@pytest.mark.parametrize(("metrics", "title"), [
    (made.viable(), "✓ viable, settled"), (made.replayed(), "≈ marginal, not settled"),
    (made.not_ready(), "✗ not ready, settled")], ids=["viable", "marginal", "not-ready"])
def test_the_verdict_stands_in_words_not_in_colour_alone(metrics, title):
    assert title in shown(verdict_panel(metrics)).splitlines()[0]


def test_there_is_no_colour_where_nobody_looks():
    assert "\x1b" not in shown(verdict_panel(made.not_ready()))


def test_no_color_is_honoured_on_a_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(verdict_panel(made.not_ready()), force_terminal=True)
    assert "\x1b[31m" not in text and "31m" not in text


@pytest.mark.parametrize("render", [
    lambda: comparison_table(made.hostile(HOSTILE)), lambda: verdict_panel(made.hostile(HOSTILE)),
    lambda: runs_table(made.side_by_side({HOSTILE: made.hostile(HOSTILE)})),
    lambda: table(HOSTILE, [HOSTILE], [[HOSTILE]])], ids=["comparison", "verdict", "runs", "table"])
def test_hostile_text_is_neither_markup_nor_an_escape(render):
    text = shown(render(), width=400)
    assert "\x1b" not in text and "\u202e" not in text
    assert "[red]x[/red]" in text and ":smile:" in text and "[link=http://evil.test]" in text


def test_a_model_name_of_200_kb_does_not_flood_the_terminal():
    assert len(shown(comparison_table(made.hostile("m" * 200_000)))) < 20_000


def test_a_plain_table_shows_none_as_unknown():
    lines = shown(table("T", ["name", "rows"], [["a", 12000], ["b", None]])).splitlines()
    assert "12,000" in lines[-2] and "unknown" in lines[-1]
