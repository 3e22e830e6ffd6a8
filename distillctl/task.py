"""The task: how an example becomes a prompt, and how an output becomes a value that can be scored.

The one place for both, used in collection, training, evaluation and serving, so that all see the same
prompt and read an answer the same way.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distillctl.errors import DataError, Problem, RecipeError, UsageError
from distillctl.evaluate.text_scores import (
    LIKENESS_NAMES,
    chrf,
    embedding,
    load_embedder,
    normal,
    rouge_l,
)
from distillctl.recipe.models import ClassificationSpec, FieldSpec, StructuredSpec, TextSpec
from distillctl.types import JSON, Message

_REASONING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^```[\w-]*\s*\n(.*?)\n?```\s*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parsed:
    """An output read by the task: `value`, or None and the `problem` that kept it from being read."""

    value: JSON = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How a value stands against what was expected. parts: named shares in [0, 1] (fields, checks)."""

    correct: bool
    parts: Mapping[str, float] = field(default_factory=dict)


class Task(ABC):
    """Renders prompts, reads outputs, scores values. Build one with `build_task`."""

    kind: str
    labels: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None

    def __init__(self, spec: ClassificationSpec | StructuredSpec | TextSpec) -> None:
        self.spec = spec
        env = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, autoescape=False, finalize=_printable)
        try:
            self._template = env.from_string(spec.prompt)
            self.variables = frozenset(meta.find_undeclared_variables(env.parse(spec.prompt)))
        except TemplateError as error:
            raise RecipeError(Problem(
                f"the prompt is not a valid Jinja2 template: {error}", field="task.prompt")) from None

    def render(self, fields: Mapping[str, JSON], source: str | None = None) -> list[Message]:
        """The prompt for one example, as chat messages. Raises DataError at an undefined variable."""
        try:
            text = self._template.render(fields)
        except UndefinedError as error:
            raise DataError(Problem(
                f"the prompt needs a field that this row lacks: {error}", where=source,
                hint="add the field, or guard it with {% if name is defined %}")) from None
        except (TemplateError, TypeError, OverflowError, ValueError) as error:
            raise DataError(Problem(f"the prompt cannot be rendered: {error}", where=source)) from None
        messages: list[Message] = [{"role": "user", "content": text.strip()}]
        if self.spec.system is not None:
            messages.insert(0, {"role": "system", "content": self.spec.system})
        return messages

    def parse(self, output: str | None) -> Parsed:
        """Read a model's output: reasoning in <think> tags and surrounding blanks are not part of it."""
        if output is None or not output.strip():
            return Parsed(problem="empty answer")
        text = _REASONING.sub("", output).strip()
        if text.startswith("<think>"):
            return Parsed(problem="reasoning was not closed")
        return self._parse(text) if text else Parsed(problem="empty answer")

    @abstractmethod
    def _parse(self, text: str) -> Parsed: ...

    @abstractmethod
    def target(self, value: JSON) -> str:
        """The text that a student learns for a parsed value; `parse(target(v))` gives v back."""

    def how_scored(self, part: str) -> str:
        """What makes a field or check right, in words."""
        return ""

    @abstractmethod
    def score(self, value: JSON, expected: JSON) -> Score:
        """Score a parsed value (None: unreadable, which is wrong) against the expected one."""


class ClassificationTask(Task):
    """One of a few labels; case, quotes and a final full stop do not matter."""

    kind = "classification"

    def __init__(self, spec: ClassificationSpec) -> None:
        super().__init__(spec)
        self.labels = tuple(spec.labels)
        self._by_folded = {label.strip().casefold(): label for label in spec.labels}

    def label(self, text: object) -> str | None:
        """The declared label that `text` means, or None."""
        if not isinstance(text, str):
            return None
        for candidate in (text.strip(), text.strip().strip("\"'`*").rstrip(".").strip("\"'`*")):
            if found := self._by_folded.get(candidate.casefold()):
                return found
        return None

    def _parse(self, text: str) -> Parsed:
        found = self.label(text)
        return Parsed(found) if found else Parsed(problem="not one of the labels")

    def target(self, value: JSON) -> str:
        return str(value)

    def score(self, value: JSON, expected: JSON) -> Score:
        return Score(value is not None and value == self.label(expected))


class StructuredTask(Task):
    """One JSON object that fits a schema, scored field by field."""

    kind = "structured"

    def __init__(self, spec: StructuredSpec) -> None:
        super().__init__(spec)
        if isinstance(spec.json_schema, str):
            raise TypeError("json_schema must have been read from its file (see recipe.load)")
        self.json_schema = spec.json_schema

    @cached_property
    def _validator(self) -> Any:
        import jsonschema  # 0.1 s to import: only where an answer is read

        cls = jsonschema.validators.validator_for(self.json_schema)
        return cls(self.json_schema)

    def _parse(self, text: str) -> Parsed:
        fenced = _FENCE.match(text)
        try:
            value = json.loads(fenced.group(1) if fenced else text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return Parsed(problem=f"not JSON: {error}"[:200])
        error = next(iter(self._validator.iter_errors(value)), None)
        if error is not None:
            return Parsed(problem=f"does not fit the schema at {error.json_path}: {error.message}"[:200])
        return Parsed(value) if isinstance(value, dict) else Parsed(problem="not a JSON object")

    def target(self, value: JSON) -> str:
        order = list(self.json_schema.get("properties", {}))
        keys = sorted(value, key=lambda k: (order.index(k) if k in order else len(order), k))
        return json.dumps({k: value[k] for k in keys}, ensure_ascii=False)

    def score(self, value: JSON, expected: JSON) -> Score:
        parts = {name: float(value is not None and _field_right(value.get(name), wanted, self._how(name)))
                 for name, wanted in self.scored(expected).items()}
        return Score(bool(parts) and all(part == 1.0 for part in parts.values()), parts)

    def scored(self, expected: JSON) -> dict[str, JSON]:
        """The expected fields that count: those that the recipe does not ignore."""
        return {name: wanted for name, wanted in (expected or {}).items()
                if self._how(name).score != "ignore"}

    def how_scored(self, part: str) -> str:
        how = self._how(part)
        return {"number": f"a number within {how.tolerance:g}", "set": "a list, order and repeats aside",
                "bag": "a list, order aside", "list": "a list in order",
                "text": f"ROUGE-L of at least {how.threshold:g}"}.get(how.score, how.score)

    def _how(self, name: str) -> FieldSpec:
        return self.spec.fields.get(name, FieldSpec())


class TextTask(Task):
    """Free text, checked by required and forbidden terms, number of words, and likeness to a text.

    `expected` may hold `text` (a string), `must_include` and `must_not_include` (lists of strings; case
    does not matter).
    """

    kind = "text"

    def _parse(self, text: str) -> Parsed:
        return Parsed(text)

    def target(self, value: JSON) -> str:
        return str(value)

    def score(self, value: JSON, expected: JSON) -> Score:
        wanted = expected or {}
        text = value or ""
        folded = text.casefold()
        parts: dict[str, float] = {}
        if "must_include" in wanted:
            parts["must_include"] = float(all(str(t).casefold() in folded for t in wanted["must_include"]))
        if "must_not_include" in wanted:
            parts["must_not_include"] = float(
                not any(str(t).casefold() in folded for t in wanted["must_not_include"]))
        if self.spec.min_words is not None:
            parts["min_words"] = float(len(text.split()) >= self.spec.min_words)
        if self.spec.max_words is not None:
            parts["max_words"] = float(len(text.split()) <= self.spec.max_words)
        if wanted.get("text") is not None:
            if self.spec.min_similarity is not None:
                parts["text"] = float(self.likeness(text, wanted["text"]) >= self.spec.min_similarity)
            elif "must_include" not in wanted and "must_not_include" not in wanted:
                parts["text"] = float(normal(text) == normal(wanted["text"]))
        return Score(bool(text) and bool(parts) and all(p == 1.0 for p in parts.values()), parts)

    def how_scored(self, part: str) -> str:
        alike = ("equal after normalisation" if self.spec.min_similarity is None else
                 f"{LIKENESS_NAMES[self.spec.similarity]} of at least {self.spec.min_similarity:g}")
        return {"must_include": "has every required term", "must_not_include": "has no forbidden term",
                "min_words": f"at least {self.spec.min_words} words", "text": alike,
                "max_words": f"at most {self.spec.max_words} words"}.get(part, "")

    def likeness(self, text: str, reference: str) -> float:
        """How alike two texts are, in [0, 1], as the recipe measures it."""
        if self.spec.similarity == "embedding":
            return embedding(text, reference, self.spec.embedding_model)
        return {"rouge_l": rouge_l, "chrf": chrf}[self.spec.similarity](text, reference)

    def check_ready(self) -> None:
        """Raises UsageError where the recipe's embedding model cannot be had; may load it from the Hub."""
        if self.spec.embedding_model is None:
            return
        try:
            load_embedder(self.spec.embedding_model)
        except Exception as error:  # a folder with anything in it, or the Hub
            raise UsageError(Problem(
                f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
                field="task.embedding_model", value=self.spec.embedding_model,
                hint="name a folder that model2vec saved, or a Hub id of a static model")) from None


def build_task(spec: ClassificationSpec | StructuredSpec | TextSpec) -> Task:
    """The task for a recipe's `task` block. Raises RecipeError for a template that cannot be read."""
    kinds: dict[str, type[Task]] = {
        "classification": ClassificationTask, "structured": StructuredTask, "text": TextTask}
    return kinds[spec.kind](spec)


def _printable(value: Any) -> Any:
    """What a template prints. Null and nested values would read as Python's None and brackets."""
    if value is None:
        raise TypeError("null is printed where text is needed")
    if isinstance(value, dict | list | tuple):
        raise TypeError("a nested value is printed where text is needed")
    return value


def _no_constant(name: str) -> JSON:
    raise ValueError(f"{name} is not JSON")


def _field_right(value: JSON, wanted: JSON, how: FieldSpec) -> bool:
    if how.score == "number":
        return _is_number(value) and _is_number(wanted) and abs(value - wanted) <= how.tolerance
    if how.score == "set":
        return (isinstance(value, list) and isinstance(wanted, list)
                and _canonical(value) == _canonical(wanted))
    if how.score == "bag":
        return (isinstance(value, list) and isinstance(wanted, list)
                and Counter(map(_canonical_item, value)) == Counter(map(_canonical_item, wanted)))
    if how.score == "text":
        return isinstance(value, str) and rouge_l(value, str(wanted)) >= how.threshold
    return same_json(value, wanted)  # exact and list


def same_json(value: JSON, other: JSON) -> bool:
    """Whether two values are the same JSON: 1 is not true, at no depth, and 1 is not 1.0."""
    return _canonical_item(value) == _canonical_item(other)


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _canonical(items: list[JSON]) -> set[str]:
    return {_canonical_item(item) for item in items}


def _canonical_item(item: JSON) -> str:
    return json.dumps(item, sort_keys=True, ensure_ascii=False)
