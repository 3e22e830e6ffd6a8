"""Values are what a YAML 1.2 reader says they are, each with its place."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillctl.recipe.yaml12 import decode, parse


@pytest.mark.parametrize(("text", "value"), [
    ("1e-4", 1e-4), ("1.0e-3", 1e-3), (".5", 0.5), ("1.", 1.0), ("+1.5E+2", 150.0), ("0.0", 0.0),
    ("7", 7), ("-7", -7), ("+7", 7), ("0755", 755), ("0o17", 15), ("0x1F", 31),
    ("true", True), ("False", False), ("TRUE", True), ("~", None), ("null", None), ("", None),
    ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("tRue", "tRue"),
    ("1:30", "1:30"), ("1:30:15", "1:30:15"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"),
    ("0b11", "0b11"), ("0xZ", "0xZ"), ("1e", "1e"), ("e5", "e5"), (".", "."), ("-", [None]), ("=", "="),
    ("2024-01-01T10:00:00Z", "2024-01-01T10:00:00Z"), ("'1'", "1"), ('"true"', "true"), ('"a\\tb"', "a\tb"),
])
def test_plain_scalars_follow_the_core_schema(text: str, value: object):
    document = parse(text, "f")
    assert not document.problems
    assert (document.data, type(document.data)) == (value, type(value))


@pytest.mark.parametrize("text", [".nan", ".NaN", ".inf", "-.inf", "+.INF", "1e999", "-1e999", "9" * 5000])
def test_numbers_that_are_not_finite_are_problems(text: str):
    assert len(parse(f"[{text}]", "f").problems) == 1


def test_every_field_has_the_line_of_its_key():
    document = parse("a: 1\nb:\n  c:\n    - x\n    - y: |\n        text\n\nd:\n  2\n", "f.yaml")
    assert document.data == {"a": 1, "b": {"c": ["x", {"y": "text\n"}]}, "d": 2}
    places = {(): 1, ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 4, ("b", "c", 1): 5,
              ("b", "c", 1, "y"): 5, ("d",): 8}
    assert document.places == {path: f"f.yaml:{line}" for path, line in places.items()}
    assert document.text_lines == {("b", "c", 1, "y"): 6}


def test_a_field_that_is_not_there_is_placed_at_what_would_hold_it():
    document = parse("a:\n  b: 1\n", "f.yaml")
    assert document.where(("a", "c", "d")) == "f.yaml:1"
    assert document.where(("x",)) == "f.yaml:1"


def test_all_problems_of_a_file_are_found_at_once():
    document = parse("a: 1\na: 2\nb: &x 3\nc: *x\nd: !!str 4\n? [e]\n: 5\nf: .nan\n", "f")
    assert [p.where for p in document.problems] == ["f:2", "f:3", "f:4", "f:5", "f:6", "f:8"]


def test_the_first_of_two_equal_keys_is_kept():
    assert parse("a: 1\nb: 2\na: {c: 3}\n", "f").data == {"a": 1, "b": 2}


def test_a_byte_order_mark_and_windows_line_ends_are_read():
    document = parse(decode(b"\xef\xbb\xbfa: 1\r\nb: |\r\n  x\r\n  y\r\n", "f"), "f")
    assert document.data == {"a": 1, "b": "x\ny\n"}


def test_quoted_merge_sign_is_a_plain_key():
    assert parse('"<<": 1', "f").data == {"<<": 1}


_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"],
                              exclude_characters="\ufeff\u2028\u2029"))
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-10**30, 10**30) | _text
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(_text.filter(lambda t: len(t) < 99), inner, max_size=4),
    max_leaves=12)


@settings(max_examples=60, deadline=None)
@given(_json)
def test_json_reads_as_itself(value: object):
    document = parse(json.dumps(value, ensure_ascii=False), "f")
    assert not document.problems
    assert document.data == value


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_any_text_gives_values_or_problems_and_nothing_else(text: str):
    document = parse(text, "f")
    assert document.complete or document.problems
    assert not isinstance(document.data, float) or math.isfinite(document.data)
