"""Text of strangers is harmless on a terminal and honest on a page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.report.sanitize import clean, cut, visible


@pytest.mark.parametrize(("text", "left"), [
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[2J\x1b[1;1Hgone", "gone"),
    ("\x9b31mred", "red"),  # the one-character CSI
    ("\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x07", "link"),
    ("\x1b]52;c;ZXZpbA==\x07copied", "copied"),  # OSC 52 writes the clipboard
    ("\x9d52;c;ZXZpbA==\x9ccopied", "copied"),
    ("\x1bPq#0;2;0;0;0\x1b\\sixel", "sixel"),
    ("\x1bcreset", "reset"),
    ("\x1b]0;never ended\nnext line", "\nnext line"),
    ("password ok\rpassword no", "password okpassword no"),
    ("a\x00b\x08c\x7fd", "abcd"),
    ("evil\u202etxt.exe", "eviltxt.exe"),
    ("a\u200bb\ufeffc\u2066d\u00ade", "abcde"),
    ("lone \ud800 half", "lone \ufffd half"),
])
def test_what_could_act_on_a_terminal_is_taken_out(text, left):
    assert clean(text) == left


def test_lines_tabs_and_other_scripts_stay():
    text = "first\n\tsecond – naïve 日本語 עברית 🙂"
    assert clean(text) == text


@given(st.text())
def test_cleaned_text_has_no_control_characters_and_stays_clean(text):
    cleaned = clean(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in cleaned)
    assert clean(cleaned) == cleaned
    cleaned.encode()


def test_a_page_shows_hidden_characters_as_escapes():
    assert visible("a\x1b[31m\u202eb\r\nc\ud800") == "a\\x1b[31m\\u202eb\nc\\ud800"


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "Zs", "Cs", "Cc"))))
def test_visible_text_can_be_written(text):
    visible(text).encode()


def test_what_is_cut_off_is_counted():
    assert cut("x" * 1200, 200) == "x" * 200 + " … (1,000 more characters)"
    assert cut("short", 200) == "short"
