"""What the models cannot see: contradictions between blocks, paths, addresses, templates, JSON Schemas."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import TemplateSyntaxError

from distillctl.errors import Problem, RecipeError
from distillctl.recipe.models import (
    AnthropicTeacher,
    ClassificationSpec,
    DataSpec,
    EvaluateSpec,
    JudgeSpec,
    OpenAITeacher,
    RecordedTeacher,
    SplitFiles,
    StructuredSpec,
    StudentSpec,
    TextSpec,
)
from distillctl.recipe.paths import existing_file
from distillctl.recipe.problems import nearest
from distillctl.recipe.provider_schema import anthropic_problems
from distillctl.recipe.yaml12 import MAX_BYTES, Document, FieldPath, dotted
from distillctl.task import Task, build_task
from distillctl.types import JSON

TaskBlock = ClassificationSpec | StructuredSpec | TextSpec
TeacherBlock = OpenAITeacher | AnthropicTeacher | RecordedTeacher

TEXT_EXPECTATIONS = ("text", "must_include", "must_not_include")
_METADATA = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
_METADATA_ADDRESSES = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254")))


@dataclass
class Checks:
    """Looks at the blocks of a recipe that are valid by themselves; a block that is not is None."""

    document: Document
    base: Path
    task: TaskBlock | None
    data: DataSpec | None
    teacher: TeacherBlock | None
    student: StudentSpec | None
    evaluate: EvaluateSpec | None = None
    problems: list[Problem] = field(default_factory=list)
    built: Task | None = None

    def run(self) -> list[Problem]:
        """All problems. Afterwards `task` has its JSON Schema inlined and `built` is the task, where both
        could be had."""
        self._files()
        if isinstance(self.task, StructuredSpec):
            self._json_schema(self.task)
        if self.task:
            self._template(self.task)
        if self.task and self.data:
            self._expected(self.task, self.data)
        if self.teacher:
            self._teacher(self.teacher)
        if self.evaluate and self.evaluate.judge:
            self._judge(self.evaluate.judge)
        return self.problems

    def _add(self, path: FieldPath, what: str, hint: str | None = None, **value: JSON) -> None:
        self.problems.append(Problem(what, self.document.where(path), dotted(path), hint=hint, **value))

    # --- files

    def _files(self) -> None:
        named: dict[FieldPath, str] = {}
        if self.data and isinstance(self.data.examples, SplitFiles):
            named |= {("data", "examples", split): name for split, name in self.data.examples}
        elif self.data:
            named["data", "examples"] = self.data.examples
        if self.data and isinstance(self.data.split, str):
            named["data", "split"] = self.data.split
        if isinstance(self.teacher, RecordedTeacher):
            named["teacher", "outputs"] = self.teacher.outputs
        for path, name in named.items():
            self._file(path, name)
        if self.data and isinstance(self.data.examples, SplitFiles) and "split" in self.data.model_fields_set:
            self._add(("data", "split"), "has no meaning where `data.examples` names a file per split",
                      "delete one of the two")

    def _file(self, path: FieldPath, name: str) -> Path | None:
        try:
            return existing_file(self.base, name)
        except ValueError as error:
            what, _, hint = str(error).partition("; ")
            self._add(path, what, hint or None, value=name)
            return None

    # --- the task

    def _json_schema(self, task: StructuredSpec) -> None:
        at = ("task", "json_schema")
        schema, place = task.json_schema, None
        if isinstance(schema, str):
            self.task = task.model_copy(update={"json_schema": {}})  # until it has been read
            file = self._file(at, schema)
            if file is None:
                return
            place = str(file)
            try:
                schema = _read_schema(file)
            except ValueError as error:
                self._add(at, f"the file is not a JSON Schema: {error}", f"mend {file}")
                return
        wrong = schema_problem(schema)
        if wrong:
            what, _, hint = wrong.partition("; ")
            self._add(at, what, f"{hint} (in {place})" if place else hint)
            return
        self.task = task.model_copy(update={"json_schema": schema})
        closed = isinstance(schema.get("properties"), Mapping) and not any(
            key in schema for key in ("$ref", "allOf", "anyOf", "oneOf", "patternProperties"))
        if closed:
            names = list(schema["properties"])
            for name in task.fields:
                self._known(("task", "fields", name), name, names)
            if self.data and isinstance(self.data.expected, Mapping):
                for name in self.data.expected:
                    self._known(("data", "expected", name), name, names)

    def _known(self, path: FieldPath, name: str, names: list[str]) -> None:
        if name not in names:
            close = nearest(name, names)
            self._add(path, "the answer's JSON Schema has no such field",
                      f"did you mean `{close}`?" if close else f"it has: {', '.join(names)}")

    def _template(self, task: TaskBlock) -> None:
        at = ("task", "prompt")
        try:
            self.built = build_task(task)
        except RecipeError as error:
            where = self.document.where(at)
            cause = error.__context__
            first = self.document.text_lines.get(at)
            if first and isinstance(cause, TemplateSyntaxError):
                where = f"{self.document.name}:{first + cause.lineno - 1}"
            hint = "{{ name }} puts a field in; {% if name %}...{% endif %} is for one that may be empty"
            self.problems += [replace(p, where=where, what=" ".join(p.what.split()), hint=hint)
                              for p in error.problems]
            return
        if not self.built.variables:
            self._add(at, "has no variable, so every example would give the same prompt",
                      "put a field of the examples into it, such as {{ question }}")

    # --- between blocks

    def _expected(self, task: TaskBlock, data: DataSpec) -> None:
        at, expected = ("data", "expected"), data.expected
        if isinstance(task, ClassificationSpec) and isinstance(expected, Mapping):
            self._add(at, "must be the name of one field for a classification, not a mapping",
                      "for example expected: label")
        elif not isinstance(task, ClassificationSpec) and isinstance(expected, str):
            wanted = "text" if isinstance(task, TextSpec) else "answer_field"
            self._add(at, f"must be a mapping for a {task.kind} task", f"for example expected: "
                      f"{{{wanted}: {expected}}}", value=expected)
        elif isinstance(task, TextSpec) and isinstance(expected, Mapping):
            for name in expected:
                if name not in TEXT_EXPECTATIONS:
                    close = nearest(name, TEXT_EXPECTATIONS)
                    self._add((*at, name), "is nothing that a text is checked for",
                              f"did you mean `{close}`?" if close else
                              f"it can be checked for {', '.join(TEXT_EXPECTATIONS)}")
        held = {expected} if isinstance(expected, str) else set((expected or {}).values())
        for name in sorted(held & (self.built.variables if self.built else frozenset())):
            self._add(("task", "prompt"), f"shows the expected answer: it uses the field `{name}`",
                      "take it out of the prompt; the model must not see what it is scored against")

    def _teacher(self, teacher: TeacherBlock) -> None:
        if self.student and teacher.model == self.student.model:
            self._add(("student", "model"), "is the teacher itself, so there is nothing to distil",
                      "choose a smaller model", value=self.student.model)
        if getattr(teacher, "structured_output", False) and self.task and self.task.kind != "structured":
            self._add(("teacher", "structured_output"), f"has no meaning for a {self.task.kind} task, which "
                      "has no JSON Schema", "delete it, or make the task `kind: structured`")
        if isinstance(teacher, AnthropicTeacher) and teacher.structured_output and isinstance(
                self.task, StructuredSpec) and (wrong := anthropic_problems(self.task.json_schema)):
            self._add(("teacher", "structured_output"), "Anthropic does not take the task's JSON Schema: "
                      + "; ".join(wrong[:5]), "mend the schema, or set it to false")
        self._address(("teacher", "base_url"), getattr(teacher, "base_url", None))

    def _judge(self, judge: JudgeSpec) -> None:
        if self.task and self.task.kind != "text":
            self._add(("evaluate", "judge"), f"has no meaning for a {self.task.kind} task, whose answers are "
                      "right or wrong without one", "delete it")
        self._address(("evaluate", "judge", "base_url"), judge.base_url)

    def _address(self, path: FieldPath, url: str | None) -> None:
        if url is not None and (wrong := base_url_problem(url)):
            self._add(path, *wrong)


# --- addresses ----------------------------------------------------------------------------------------


def base_url_problem(url: str) -> tuple[str, str] | None:
    """What is wrong with the address of a server, and what to do; None where nothing is.

    Names are not looked up. Neither text repeats the address: it may hold a password.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        _ = parts.port  # raises ValueError where it is no port
    except ValueError:
        parts, host = None, ""
    if parts is None or parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
        return "is not the address of a server", "write https://host/path, or http://127.0.0.1:PORT/path"
    if "@" in parts.netloc:
        return ("holds a user name or a password",
                "delete what stands before the @, and name the key's environment variable in api_key_env")
    address = _address(host)
    if host in _METADATA or (address and (address.is_link_local or address in _METADATA_ADDRESSES)):
        return ("is a link-local or metadata address, which is never a teacher",
                "write the address of the model server")
    loopback = address.is_loopback if address else host == "localhost" or host.endswith(".localhost")
    if parts.scheme == "http" and not loopback:
        return ("is plain http to another machine: prompts and key would travel readable",
                "use https, or an SSH tunnel and http://127.0.0.1:PORT")
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is, in any of the ways that the system's resolver reads one."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    with contextlib.suppress(OSError):  # 2852039166, 0xa9fea9fe, 0251.0376.0251.0376
        return ipaddress.ip_address(socket.inet_aton(host))
    return None


# --- JSON Schemas -------------------------------------------------------------------------------------


def schema_problem(schema: Any) -> str | None:
    """Why a JSON Schema cannot be used for answers, and after "; " what to do; None where nothing is wrong.

    References never leave the schema: nothing is fetched.
    """
    import jsonschema  # 0.1 s to import: only for structured tasks
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema, dict):
        return "a JSON Schema must be a mapping; begin with {\"type\": \"object\"}"
    validator = jsonschema.validators.validator_for(schema, default=None)
    if validator is None and "$schema" in schema:
        return f"the dialect {schema['$schema']!r} is not known; leave `$schema` out for draft 2020-12"
    validator = validator or jsonschema.Draft202012Validator
    try:
        validator.check_schema(schema)
        resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
        for reference in _references(schema):
            if not reference.startswith("#"):
                return f"the reference {reference!r} leaves the schema; copy what it means into `$defs`"
            try:
                resolver.lookup(reference)
            except Unresolvable:
                return f"the reference {reference!r} leads nowhere; define it under `$defs`"
        fits_nothing = list(validator(schema).iter_errors({}))
    except jsonschema.SchemaError as error:
        return (f"not a valid JSON Schema at {error.json_path}: {error.message[:200]}; mend it there "
                "(https://json-schema.org/understanding-json-schema)")
    except RecursionError:
        return "a reference leads back to itself without end; let it lead to a type"
    if any(error.validator == "type" and not error.absolute_path for error in fits_nothing):
        return "the answer must be one JSON object; the schema's top `type` must be object"
    return None


def _references(schema: JSON) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _read_schema(file: Path) -> JSON:
    """The JSON in a file. Raises ValueError in words for the user."""
    def distinct(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
        twice = [key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1]
        if twice:
            raise ValueError(f"the key {twice[0]!r} is there twice")
        return dict(pairs)

    if file.stat().st_size > MAX_BYTES:
        raise ValueError("it is larger than 1 MiB")
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=distinct)
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None
