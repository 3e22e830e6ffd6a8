"""YAML read as YAML 1.2 means it, and nothing that a recipe has no use for.

PyYAML's `safe_load` follows YAML 1.1: `no` is false, `1:30` is 90, `1e-4` is text, `0755` is 493, and of
two equal keys the last one wins silently. Here PyYAML's SafeLoader only scans and parses; its events are
turned into plain values by the core schema of YAML 1.2.2, section 10.3 (https://yaml.org/spec/1.2.2). No
constructor is ever called, so no tag can create an object. Aliases, anchors, merge keys, tags, duplicate
keys, NaN and infinity are problems with the line that they stand on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import yaml
from yaml.reader import Reader

from distillctl.errors import Problem, RecipeError
from distillctl.types import JSON

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_DIGITS = 64
MAX_PROBLEMS = 50

FieldPath = tuple[str | int, ...]

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

_SYNTAX_HINTS = (
    ("'\\t'", "indent with spaces; a tab cannot indent in YAML"),
    ("mapping values are not allowed", "text that contains ': ' needs quotes around it"),
    ("expected <block end>", "check the indentation of this line and of the one before it"),
    ("could not find expected ':'", "a key is missing its ':', or the line before is not finished"),
    ("expected ',' or", "a bracket was opened and not closed, or a comma is missing"),
    ("unexpected end of stream", "a quote or a bracket was opened and not closed"),
    ("cannot start any token", "put quotes around text that begins with this character"),
)


@dataclass
class Document:
    """One YAML document: its values, and where each of them stands.

    places: for each field path "file:line" of its key (of the item, in a list). text_lines: for block text
    (`|`) the number of its first line in the file. spoiled: paths whose value could not be read as meant.
    """

    name: str
    data: JSON = None
    places: dict[FieldPath, str] = field(default_factory=dict)
    text_lines: dict[FieldPath, int] = field(default_factory=dict)
    spoiled: set[FieldPath] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    complete: bool = True  # False: a syntax error ended the reading

    def where(self, path: FieldPath) -> str:
        """The place of a field, or of the nearest one around it that is there."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


def dotted(path: FieldPath) -> str:
    """`task.labels[2]` for ("task", "labels", 2)."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part if part.isprintable() else repr(part)}"
                   for part in path)
    return text.removeprefix(".")


def decode(raw: bytes, name: str) -> str:
    """The text of a file's bytes; a byte order mark is dropped. Raises RecipeError where it is none."""
    if len(raw) > MAX_BYTES:
        raise RecipeError(Problem("a recipe may not be larger than 1 MiB", name,
                                  hint="data belongs in files of its own that the recipe names"))
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError(Problem("this is UTF-16, not UTF-8", f"{name}:1", hint="save the file as UTF-8"))
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(Problem("this line is not UTF-8", f"{name}:{line}",
                                  hint="save the file as UTF-8")) from None


def parse(text: str, name: str, place: Callable[[int], str] | None = None) -> Document:
    """Read one document. What is wrong is in `problems`; nothing is raised.

    place: words for a line number; "name:line" without it.
    """
    document = Document(name)
    place = place or (lambda line: f"{name}:{line}")
    if found := Reader.NON_PRINTABLE.search(text):
        document.complete = False
        document.problems.append(Problem(
            f"a control character (U+{ord(found.group()):04X}) is not allowed in YAML",
            place(text.count("\n", 0, found.start()) + 1), hint="delete it"))
        return document
    builder = _Builder(text, document, place)
    try:
        document.data = builder.document()
    except yaml.MarkedYAMLError as error:
        document.complete = False
        builder.syntax_error(error)
    except _Stop:
        document.complete = False
    return document


class _Stop(Exception):
    """Reading on would be of no use."""


class _Builder:
    """Turns the parser's events into values, noting places and problems in the document."""

    def __init__(self, text: str, document: Document, place: Callable[[int], str]) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._document = document
        self._place = place

    def document(self) -> JSON:
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        event = next(self._events)
        self._note(event, ())
        data = self._node(event, ())
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._problem(event, (), "a second document begins here", hint="keep one document per file")
        return data

    def syntax_error(self, error: yaml.MarkedYAMLError) -> None:
        what = (error.problem or error.context or "it cannot be read").strip()
        mark = error.problem_mark or error.context_mark
        if "unexpected end of stream" in what and error.context_mark:
            mark = error.context_mark  # where the quote or bracket was opened
        hint = next((hint for words, hint in _SYNTAX_HINTS if words in what),
                    "put quotes around text that holds any of : # [ ] { } & * ! | > % @ ` , or a quote")
        self._document.problems.append(Problem(
            f"not valid YAML: {what}", self._place(mark.line + 1 if mark else 1), hint=hint))

    def _node(self, event: yaml.Event, path: FieldPath) -> JSON:
        if isinstance(event, yaml.AliasEvent):
            self._problem(event, path, "an alias (*) is not allowed in a recipe", hint="write the value out")
            return None
        if event.anchor is not None:
            self._problem(event, path, "an anchor (&) is not allowed in a recipe",
                          hint="delete it, and write the value out where it is used")
        if event.tag is not None:
            self._problem(event, path, "a tag (!) is not allowed in a recipe",
                          hint="delete the tag; put quotes around what must be text")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if len(path) >= MAX_DEPTH:
            self._problem(event, path[:4], f"nested deeper than {MAX_DEPTH} levels", hint="flatten it")
            raise _Stop
        return self._list(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)

    def _list(self, path: FieldPath) -> list[JSON]:
        items: list[JSON] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            child = (*path, len(items))
            self._note(event, child)
            items.append(self._node(event, child))
        return items

    def _mapping(self, path: FieldPath) -> dict[str, JSON]:
        values: dict[str, JSON] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            if key is None:
                self._node(next(self._events), (*path, "?"))
                continue
            child = (*path, key)
            if key in values:
                self._problem(event, child, "this key is here twice "
                              f"(first at {self._document.places[child]})", hint="keep one of them")
                self._node(next(self._events), child)
                continue
            self._note(event, child)
            values[key] = self._node(next(self._events), child)
        return values

    def _key(self, event: yaml.Event, path: FieldPath) -> str | None:
        """The key, or None where it cannot be one; its event, and all within it, is then used up."""
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            self._problem(event, path, "a merge key (<<) is not allowed in a recipe",
                          hint="write the values out")
            return None
        key = self._node(event, (*path, "?"))
        if isinstance(key, str):
            return key
        if not isinstance(event, yaml.AliasEvent):
            self._problem(event, path, "a key must be text", hint="put quotes around it")
        return None

    def _scalar(self, event: yaml.ScalarEvent, path: FieldPath) -> JSON:
        if event.style is not None:
            if event.style == "|":
                self._document.text_lines.setdefault(path, event.start_mark.line + 2)
            if _UNSTORABLE.search(event.value):
                self._problem(event, path, "a NUL or half a surrogate pair is not text", hint="delete it")
                return None
            return event.value
        try:
            return core_scalar(event.value)
        except ValueError as error:
            self._problem(event, path, str(error), hint="write a finite number, or put quotes around text")
            return None

    def _note(self, event: yaml.Event, path: FieldPath) -> None:
        self._document.places.setdefault(path, self._place(event.start_mark.line + 1))

    def _problem(self, event: yaml.Event, path: FieldPath, what: str, hint: str) -> None:
        self._document.spoiled.add(path)
        shown = dotted(tuple(part for part in path if part != "?")) or None
        self._document.problems.append(Problem(
            what, self._place(event.start_mark.line + 1), shown, hint=hint))
        if len(self._document.problems) >= MAX_PROBLEMS:
            raise _Stop


def core_scalar(text: str) -> JSON:
    """A plain scalar by the core schema. Raises ValueError for numbers that are not finite or absurd."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("NaN and infinity are not allowed in a recipe")
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):
            if len(text) > MAX_DIGITS:
                raise ValueError(f"a number of {len(text)} digits is not allowed in a recipe")
            return int(text[2:] if base != 10 else text, base)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("this number is too large")
        return number
    return text
