"""The Markdown form: complete, and inert whatever the models said."""

import re

import pytest
from support import metrics as made

from distillctl.report.markdown import fenced, markdown_report, plain


def test_it_has_verdict_figures_reasons_and_errors():
    text = markdown_report(made.replayed(), "routing/local")
    assert text.startswith("## Marginal, not settled: routing/local\n")
    for part in ("> Replayed teacher", "| Accuracy | 99.6 %", "### What the verdict rests on",
                 "### What to try next", "### Where it fails", "more, in metrics.json"):
        assert part in text


def test_errors_are_cut_to_a_few_of_each_kind():
    text = markdown_report(made.not_ready(), "r")
    assert text.count("student:\n") <= 12


@pytest.mark.parametrize("text", ["``` end", "````\nx\n````", "no ticks", "`" * 40])
def test_a_fence_is_longer_than_any_run_of_backticks_in_it(text):
    first, *body, last = fenced(text).splitlines()
    assert first == last + "text"
    assert "\n".join(body) == text
    assert len(last) > max((len(run) for run in re.findall("`+", text)), default=2)


@pytest.mark.parametrize("text", [
    "![b](http://evil.test/x.png)", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "a | b",
    "**bold** _em_ ~~no~~", "`code`", "$x^2$", "a\nb\n# heading", "https://evil.test", "@someone", "#12",
    "- x", "1. x", "---", "www.evil.test", "\\"])
def test_a_line_of_a_stranger_is_no_markdown(text):
    made_plain = plain(text)
    assert "\n" not in made_plain
    assert not re.search(r"[\\`*_\[\]<>|~$@!]|://|www\.|^[-+] |^\d+[.)]\s|^[-=]+$", made_plain)
    assert not re.search(r"#(?!\d+;)", made_plain)
    assert not re.search(r"&(?!#\d+;)", made_plain)


def test_a_hostile_run_leaves_no_markup_outside_its_fences():
    payload = "``` ![b](http://evil.test/x) <script>alert(1)</script> @me |\n````\n# x"
    text = markdown_report(made.hostile(payload), payload)
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    for part in ("<script", "](", "@me", "`", "\n# x"):
        assert part not in outside
    assert "<script" in text  # inside a fence it stands as it is
