"""Where `predict` has a student answer: here as its backend opens it, on a Ray cluster, or in vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from distillctl import stages
from distillctl.backend import StudentRef
from distillctl.collect import CollectOptions
from distillctl.context import Context
from distillctl.errors import Problem, UsageError
from distillctl.using import Student, open_student, temperature_of

Engine = Literal["local", "ray"]
ENGINES: tuple[str, ...] = get_args(Engine)


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
    with _on_ray(ctx, workers) as student:
        yield student


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
            f"this student answers at {ref.backend}: other machines would wait for the same service, and its "
            "key would have to travel", "--engine", value=engine, hint="leave --engine out"))
    return ref
