"""Where `predict` has a student answer: here as its backend opens it, on a Ray cluster, or in vLLM.

vLLM is known to whoever knows the weights: an opener, found through the entry-point group
`distillctl.engines`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from distillctl import stages
from distillctl.backend import StudentRef
from distillctl.collect import CollectOptions
from distillctl.context import Context
from distillctl.errors import Problem, UsageError
from distillctl.recipe.models import EvaluateSpec
from distillctl.task import Task
from distillctl.types import Predictor
from distillctl.using import Student, open_student, temperature_of

GROUP = "distillctl.engines"
Engine = Literal["local", "ray", "vllm"]
Opener = Callable[[StudentRef, Path, Task, EvaluateSpec], AbstractContextManager[Predictor]]
"""As `Backend.open`. Raises MissingExtra or UsageError where the engine is not here, StudentError for a
student that it cannot run."""


@contextmanager
def open_on(ctx: Context, engine: Engine, workers: int | None = None) -> Iterator[Student]:
    """A finished run's student on an engine, for as long as the block runs.

    workers: processes on a Ray cluster, None for its GPUs or else its nodes. Raises UsageError (also for a
    student that no engine can hold), MissingExtra, StudentError.
    """
    if workers is not None and engine != "ray":
        raise UsageError(Problem("only --engine ray has workers", "--workers", value=workers))
    if engine == "local":
        with open_student(ctx) as student:
            yield student
        return
    with _on_ray(ctx, workers) if engine == "ray" else _in_one(ctx, engine) as student:
        yield student


@contextmanager
def _in_one(ctx: Context, engine: Engine) -> Iterator[Student]:
    ref = _with_weights_here(ctx, engine)
    points = list(entry_points(group=GROUP, name=engine))
    if not points:
        raise UsageError(Problem("nothing that is installed here runs it", "--engine", value=engine))
    with points[0].load()(ref, ctx.path("student"), ctx.task, ctx.recipe.evaluate) as predictor:
        yield Student(ctx.rundir.name, ctx.task, predictor, temperature_of(ctx), CollectOptions())


@contextmanager
def _on_ray(ctx: Context, workers: int | None) -> Iterator[Student]:
    from distillctl.ray_engine import Parcel, open_on_ray

    ref = _with_weights_here(ctx, "ray")
    learner, folder = ctx.learner("student"), ctx.path("student")
    files = {str(path.relative_to(folder)): path.read_bytes()
             for path in sorted(folder.rglob("*")) if path.is_file()}
    parcel = Parcel(learner.backend, learner.settings, ref, ctx.task.spec, ctx.recipe.evaluate, files)
    with open_on_ray(parcel, workers, ctx.reporter) as predictor:
        yield Student(ctx.rundir.name, ctx.task, predictor, temperature_of(ctx), CollectOptions(),
                      at_once=predictor.at_once)


def _with_weights_here(ctx: Context, engine: Engine) -> StudentRef:
    ref = stages.student_ref(ctx, "student")
    if ref.kind == "hosted":
        raise UsageError(Problem(
            f"this student's weights stay at {ref.backend}, which answers itself", "--engine", value=engine,
            hint="leave it out"))
    return ref
