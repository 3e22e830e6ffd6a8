"""`distillctl export`: a run's student in the form that other programs run, and proof that it still answers
as it did.

How a student becomes files is known to who made it: an exporter, found through the entry-point group
`distillctl.exporters` under the backend's name. What was exported then answers the run's test split and is
put beside the student.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from distillctl import stages
from distillctl.backend import StudentRef
from distillctl.context import Context
from distillctl.errors import Problem, StorageError, UsageError
from distillctl.recipe.models import EvaluateSpec
from distillctl.select import predictions_of, requests_of
from distillctl.store.files import read_json, sync_folder, sync_tree
from distillctl.task import Task, rouge_l
from distillctl.types import JSON, Example, Prediction, Predictor

GROUP = "distillctl.exporters"
Form = Literal["adapter", "merged", "gguf", "ollama", "vllm"]
Numbers = Literal["q8_0", "bf16", "f16", "f32"]
USUAL: dict[str, Numbers] = {"merged": "bf16", "gguf": "q8_0", "ollama": "q8_0"}
FORMS: tuple[str, ...] = get_args(Form)
CONVERTED = ("merged", "gguf", "ollama")  # the weights are written anew, so they are checked unless told not
MOST_CHANGED = 0.02
_ALIKE = 0.9  # ROUGE-L from which two free texts count as the same answer


@dataclass(frozen=True)
class ExportJob:
    """What is to be exported. folder: where the student's files lie. name: of the run, `<recipe>/<run>`.
    numbers: how weights that are written anew are stored. answered_by: identity of the predictor that gave
    the run's answers."""

    student: StudentRef
    folder: Path
    task: Task
    how: EvaluateSpec
    name: str
    form: Form
    numbers: Numbers
    answered_by: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """notes: what to know, and the commands that use the files; `{folder}` is where they came to lie, as a
    shell wants it. open: a predictor that answers with the exported files, given their folder. student: one
    that answers with the run's student in the same arithmetic, where the run's own answers come from
    another: what is counted as changed is then the files' doing."""

    notes: tuple[str, ...]
    open: Callable[[Path], AbstractContextManager[Predictor]]
    student: Callable[[], AbstractContextManager[Predictor]] | None = None


Exporter = Callable[[ExportJob, Path], Exported]
"""Writes files into an existing, empty folder. Raises StudentError for a student that has no such form."""


@dataclass(frozen=True)
class Check:
    """The exported student beside the run's own, on the test split. changed: items with another answer; for
    free text, one of less than 0.9 ROUGE-L. right: items that each answers right, None where no gold answer
    exists. bound: the largest share of changed items that passes. asked_again: the student's answers are not
    the run's but new ones, in the arithmetic of the check."""

    items: int
    changed: int
    student_right: int | None
    exported_right: int | None
    bound: float
    asked_again: bool = False

    @property
    def passed(self) -> bool:
        return self.changed <= self.bound * self.items

    def sentence(self) -> str:
        """For people, in one line."""
        share = f"{self.changed} of {self.items} test items are answered differently"
        limit = f"at most {self.bound:.1%} may be"
        if self.asked_again:
            limit += "; the student was asked again, in the arithmetic of this check"
        if self.student_right is None or self.exported_right is None:
            return f"{share} ({limit})"
        return (f"{share} ({limit}); right: student {self.student_right / self.items:.1%}, exported "
                f"{self.exported_right / self.items:.1%}")


@dataclass(frozen=True)
class ExportReport:
    """What was written. files: bytes by name. check: None where it was not asked for."""

    run: str
    form: str
    folder: str
    files: dict[str, int]
    notes: list[str]
    check: Check | None

    def as_json(self) -> dict[str, JSON]:
        made = asdict(self)
        if self.check:
            made["check"]["passed"] = self.check.passed
        return made


def export_run(ctx: Context, form: Form, into: Path, *, numbers: Numbers | None = None,
               verify: bool | None = None, most_changed: float = MOST_CHANGED) -> ExportReport:
    """Export a finished run's student into a new folder.

    numbers: how weights are stored, None: as is usual for the form. verify: let what was exported answer the
    test split; None: where weights are written anew. Raises UsageError (folder in use, hosted student, no
    exporter, numbers that the form has not), StudentError, StorageError.
    """
    if numbers is not None and (form not in CONVERTED or (form, numbers) == ("merged", "q8_0")):
        raise UsageError(Problem(f"a student exported as {form} has no such numbers", "--numbers",
                                 value=numbers, hint="merged has bf16, f16 and f32; gguf and ollama have "
                                                     "q8_0 too; the others keep the student's"))
    student = stages.student_ref(ctx, "student")
    exporter = find_exporter(student, ctx.path("student"))
    into = into.resolve()
    if into == Path.cwd():  # an empty folder is replaced by a new one: a shell would be left in the old one
        raise UsageError(Problem("is the folder that you are in", "--output", value=str(into),
                                 hint="name a new folder"))
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UsageError(Problem("is there already, and is not written over", "--output", value=str(into),
                                 hint="name a new folder"))
    job = ExportJob(student, ctx.path("student"), ctx.task, ctx.recipe.evaluate, ctx.rundir.name, form,
                    numbers or _usual(student, form),
                    read_json(ctx.path("timings/student.json")).get("identity") or {})
    partial = into.with_name(f".{into.name}.partial")
    ctx.reporter.note(f"exporting {job.name} as {form}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        made = exporter(job, partial)
        sync_tree(partial)
        if into.exists():
            into.rmdir()
        partial.rename(into)
        sync_folder(into.parent)
    except OSError as error:
        raise StorageError(Problem(f"cannot write: {error.strerror or error}", str(into))) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    wanted = form in CONVERTED if verify is None else verify
    return ExportReport(
        job.name, form, str(into), {file.name: file.stat().st_size for file in sorted(into.iterdir())},
        [note.replace("{folder}", shlex.quote(str(into.resolve()))) for note in made.notes],
        check(ctx, made, into, most_changed) if wanted else None)


def _usual(student: StudentRef, form: Form) -> Numbers:
    """How weights are stored where nobody says. A whole model's may have been trained in every bit."""
    return "f32" if (student.kind, form) == ("model", "merged") else USUAL.get(form, "bf16")


def find_exporter(student: StudentRef, folder: Path) -> Exporter:
    """Who can export this student. A transformers adapter or model is the local backend's, whoever trained
    it. Raises UsageError where nobody can."""
    if student.kind == "hosted":
        raise UsageError(Problem("this student's weights stay at its provider: nothing can be exported",
                                 value=student.model, hint="`distillctl serve` passes requests on to it"))
    known = {point.name: point for point in entry_points(group=GROUP)}
    files = folder / (student.path or ".")
    usual = "local" if student.kind == "adapter" or (files / "config.json").is_file() else student.backend
    point = known.get(student.backend) or known.get(usual)
    if point is None:
        raise UsageError(Problem(f"a student of the backend {student.backend!r} cannot be exported",
                                 hint="`distillctl serve` and `distillctl predict` run it as it is"))
    return point.load()


def check(ctx: Context, made: Exported, folder: Path, bound: float) -> Check:
    """Let the exported files answer the test split, and compare with what the student answered."""
    test = ctx.examples("test")
    was = (_answered(ctx, made.student(), "student") if made.student
           else ctx.predictions("student", "test"))
    now = _answered(ctx, made.open(folder), "export")
    changed = sum(not _same(ctx.task, a, b) for a, b in zip(was, now, strict=True))
    return Check(len(test), changed, _right(ctx.task, test, was), _right(ctx.task, test, now), bound,
                 made.student is not None)


def _answered(ctx: Context, opened: AbstractContextManager[Predictor], who: str) -> list[Prediction]:
    """The test split's predictions."""
    requests = requests_of(ctx.task, ctx.examples("test"))
    answers: list[Any] = []
    with opened as predictor, asyncio.Runner() as runner:
        waiting = iter(requests)
        while batch := list(islice(waiting, predictor.max_batch)):
            answers += runner.run(predictor.answer(batch))
            ctx.reporter.progress(len(answers), len(requests),
                                  f"checking: {len(answers)}/{len(requests)} answers of the {who}")
        runner.run(predictor.aclose())
    return predictions_of(ctx.task, requests, answers)


def _same(task: Task, before: Prediction, after: Prediction) -> bool:
    if before.value is None or after.value is None or task.kind != "text":
        return before.value == after.value
    return rouge_l(str(after.value), str(before.value)) >= _ALIKE


def _right(task: Task, examples: Sequence[Example], found: Sequence[Prediction]) -> int | None:
    if any(example.expected is None for example in examples):
        return None
    return sum(task.score(one.value, example.expected).correct
               for one, example in zip(found, examples, strict=True))
