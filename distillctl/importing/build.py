"""From logged calls to a folder with a recipe that runs: examples, the recording, the recipe."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from distillctl.check import check_recipe
from distillctl.data import pii
from distillctl.errors import DataError, Problem, UsageError
from distillctl.importing import openai, tracing
from distillctl.importing.calls import Call, NotUsable, rows_of
from distillctl.importing.labels import folded, infer_labels
from distillctl.importing.prompt import Template, common_system, common_template, turns_of
from distillctl.importing.recipe import recipe_text
from distillctl.importing.table import columns
from distillctl.recipe.load import load_recipe
from distillctl.recipe.models import ClassificationSpec, TextSpec
from distillctl.recipe.schema import schema_text
from distillctl.store.files import digest_json, write_jsonl, write_text
from distillctl.store.workspace import slug
from distillctl.task import build_task
from distillctl.types import JSON

MIN_PROMPTS = 10
_READERS: dict[str, Callable[[dict[str, JSON]], Call]] = {
    "openai-chat": openai.chat, "openai-stored": openai.stored, "langfuse": tracing.langfuse,
    "langsmith": tracing.langsmith, "litellm": tracing.litellm}
FORMATS = (*_READERS, "csv")
_FIGURES = ("finish", "model", "tokens_in", "tokens_out", "latency_s", "cost_usd")


@dataclass(frozen=True)
class Logged:
    """A usable call with its place and its two texts."""

    where: str
    system: str | None
    user: str
    call: Call


@dataclass
class Imported:
    """What became of a log. rows: of the log; skipped: rows that could not be used, each with its place and
    reason; repeats: calls whose prompt was there already; contradicting: prompts that got different answers,
    of which the most frequent is kept; labels: None for text. personal: what was found that looks like
    personal data, None where nobody looked."""

    folder: str
    rows: int
    examples: int
    repeats: int
    contradicting: int
    labels: list[str] | None
    models: Mapping[str, int]
    prompt: str
    skipped: list[Problem] = field(default_factory=list)
    personal: list[pii.Finding] | None = None

    def as_json(self) -> dict[str, JSON]:
        return {**asdict(self), "models": dict(self.models),
                "skipped": [problem.as_json() for problem in self.skipped]}


def import_log(path: Path, source: str, folder: Path, *, labels: Sequence[str] | None = None,
               kind: Literal["classification", "text"] | None = None, prompt_column: str = "prompt",
               answer_column: str = "answer", look_for_pii: Literal["off", "warn", "refuse"] = "off",
               ) -> Imported:
    """Read a log and write `folder`: recipe.yaml, its schema, data/examples.jsonl, data/teacher.jsonl.

    source: one of FORMATS. labels: those of the task; without them they are inferred from few, short, often
    repeated answers, unless `kind` is "text". Rows that cannot be used are skipped and told;
    of equal prompts one example is made. The recipe is checked as `distillctl check` does it.
    look_for_pii: goes into the recipe as `data.pii`, and holds for this import too.
    Raises UsageError, with nothing written, where the folder holds such files already and where labels are
    wanted that cannot be inferred; DataError where too little can be used, or personal data is refused;
    MissingExtra.
    """
    files = {name: folder / name for name in
             ("recipe.yaml", "recipe.schema.json", "data/examples.jsonl", "data/teacher.jsonl")}
    if there := [file for file in files.values() if file.exists() or file.is_symlink()]:
        raise UsageError(*(Problem("is there already and is not overwritten", str(file),
                                   hint="choose another folder, or move the file away") for file in there))
    reader = columns(prompt_column, answer_column) if source == "csv" else _READERS[source]
    logged, skipped, rows = _read(path, reader)
    logged, template = _one_task(path, logged, skipped)
    answers: dict[str, list[Logged]] = defaultdict(list)
    for one in logged:
        answers[template.input_of(one.user)].append(one)
    if labels is None and kind != "text":
        labels = infer_labels([one.call.output for one in logged])
    if labels is None and kind == "classification":
        raise UsageError(Problem("the answers do not look like labels", str(path), "--labels",
                                 hint="name them: --labels code,docs"))
    kept = {varying: _most_frequent(calls, labels) for varying, calls in answers.items()}
    ids = {varying: _identity(one) for varying, one in kept.items()}
    spec = _spec(template, labels)
    _assert_same(spec, kept)
    personal = None
    if look_for_pii != "off":
        personal = pii.find_pii((one.where, name, text) for varying, one in kept.items()
                                for name, text in (("input", varying), ("output", one.call.output)))
        if look_for_pii == "refuse" and personal:
            raise DataError(*pii.as_problems(personal))

    write_jsonl(files["data/examples.jsonl"], ({"id": ids[varying], "input": varying} for varying in kept))
    write_jsonl(files["data/teacher.jsonl"], (
        {"id": ids[varying], "output": one.call.output,
         **{name: value for name in _FIGURES if (value := getattr(one.call, name)) is not None}}
        for varying, one in kept.items()))
    models = Counter(one.call.model for one in kept.values() if one.call.model)
    write_text(files["recipe.schema.json"], schema_text())
    write_text(files["recipe.yaml"], recipe_text(
        slug(folder.resolve().name), spec, path.name, models.most_common(1)[0][0] if models else None,
        look_for_pii))
    check_recipe(files["recipe.yaml"])
    _assert_same(load_recipe(files["recipe.yaml"]).recipe.task, kept)
    return Imported(
        str(folder), rows, len(kept), len(logged) - len(kept),
        sum(len({_said(one, labels) for one in calls}) > 1 for calls in answers.values()),
        list(labels) if labels else None, models, template.prompt, skipped, personal)


def _read(path: Path, reader: Callable[[dict[str, JSON]], Call]) -> tuple[list[Logged], list[Problem], int]:
    logged: list[Logged] = []
    skipped: list[Problem] = []
    rows = 0
    for number, row in rows_of(path):
        if isinstance(row, Problem) and number == 0:
            raise DataError(row)
        rows += 1
        where = f"{path}:{number}"
        try:
            if isinstance(row, Problem):
                skipped.append(row)
                continue
            call = reader(row)
            logged.append(Logged(where, *turns_of(call.messages), call))
        except NotUsable as reason:
            skipped.append(Problem(str(reason), where))
    return logged, skipped, rows


def _one_task(path: Path, logged: list[Logged], skipped: list[Problem]) -> tuple[list[Logged], Template]:
    """The calls that share a system prompt, and the template of their user turns."""
    system = common_system([one.system for one in logged], str(path)) if logged else None
    skipped += [Problem("has another system prompt than most calls", one.where) for one in logged
                if one.system != system]
    same = [one for one in logged if one.system == system]
    distinct = list(dict.fromkeys(one.user for one in same))
    if len(distinct) < MIN_PROMPTS:
        raise DataError(
            Problem(f"holds {len(distinct)} different prompts that can be used; {MIN_PROMPTS} are the very "
                    "least, some hundred are needed to learn from", str(path),
                    hint="what follows says why rows could not be used" if skipped else None), *skipped[:20])
    template = common_template(system, distinct)
    skipped += [Problem("has nothing where the other prompts have their input", one.where) for one in same
                if not template.input_of(one.user).strip()]
    return [one for one in same if template.input_of(one.user).strip()], template


def _most_frequent(calls: Sequence[Logged], labels: Sequence[str] | None) -> Logged:
    """A call with the answer that the prompt got most often; the first of them."""
    often = Counter(_said(one, labels) for one in calls)
    most = max(often.values())
    return next(one for one in calls if often[_said(one, labels)] == most)


def _said(one: Logged, labels: Sequence[str] | None) -> str:
    return folded(one.call.output) if labels else one.call.output.strip()


def _identity(one: Logged) -> str:
    """Of the whole prompt, so that the same log gives the same ids."""
    return digest_json({"system": one.system, "user": one.user}).removeprefix("sha256:")[:16]


def _spec(template: Template, labels: Sequence[str] | None) -> ClassificationSpec | TextSpec:
    shared = {"prompt": template.prompt, "system": template.system}
    return ClassificationSpec(kind="classification", labels=list(labels), **shared) if labels else TextSpec(
        kind="text", **shared)


def _assert_same(spec: ClassificationSpec | TextSpec, kept: Mapping[str, Logged]) -> None:
    """The recipe must ask exactly what was asked. Raises DataError with the first call that differs."""
    task = build_task(spec)
    for varying, one in kept.items():
        system = [] if one.system is None else [{"role": "system", "content": one.system}]
        if task.render({"input": varying}) != [*system, {"role": "user", "content": one.user}]:
            raise DataError(Problem("the recipe's prompt would not be the one of this call", one.where,
                                    value=json.dumps(one.user[:80], ensure_ascii=False),
                                    hint="please report it, with the row if you can share it"))
