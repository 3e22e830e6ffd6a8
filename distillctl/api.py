"""The Python API: what the command line does, for notebooks and scripts.

    import distillctl
    run = distillctl.run("recipes/routing.yaml")
    print(run.verdict.sentence)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distillctl.context import Context, Options
from distillctl.errors import DataError, Problem, StorageError, UsageError
from distillctl.pipeline import execute
from distillctl.plan import make_plan
from distillctl.progress import Reporter, Silent
from distillctl.recipe.load import load_recipe, load_resolved
from distillctl.store.files import exclusive_lock, read_json, write_json, write_text
from distillctl.store.rundir import RunDir
from distillctl.store.workspace import RUN_FILE, Workspace
from distillctl.types import JSON

if TYPE_CHECKING:
    from distillctl.backend import StudentRef
    from distillctl.evaluate.compare import ComparisonTable
    from distillctl.evaluate.results import Metrics, Verdict


class Run:
    """A finished or unfinished run on disk."""

    def __init__(self, rundir: RunDir) -> None:
        self.dir = rundir

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        return self.dir.path

    @property
    def name(self) -> str:
        """`<recipe>/<run>`."""
        return self.dir.name

    @property
    def report(self) -> Path:
        """The HTML report; it exists once the run is finished."""
        return self.path / "report.html"

    @property
    def metrics(self) -> Metrics:
        """What was measured. Raises UsageError while the run is not finished."""
        from distillctl.evaluate.results import Metrics

        file = self.path / "metrics.json"
        if not file.exists():
            raise UsageError(Problem("this run has no metrics yet", where=str(self.path),
                                     hint=f"finish it: distillctl attach {self.name}"))
        return Metrics.model_validate(read_json(file))

    @property
    def evaluator(self) -> JSON:
        """The version of the evaluator that scored it; None while it is not scored."""
        record = self.dir.records().get("evaluate")
        return record.parts.get("version") if record else None

    @property
    def verdict(self) -> Verdict:
        return self.metrics.verdict

    @property
    def settings(self) -> dict[str, JSON]:
        """How its student was made: backend, model and training, by dotted field."""
        kept = read_json(self.path / "recipe.resolved.json")
        chosen = {name: kept.get(name) for name in ("student", "train", "backend")}
        settings = (kept.get("backends") or {}).get(str(chosen["backend"]), {})
        return _flat({**chosen, f"backends.{chosen['backend']}": settings})

    @property
    def student(self) -> StudentRef:
        """Where the trained student is. Raises StorageError while it is not trained."""
        from distillctl.backend import StudentRef

        return StudentRef.from_json(read_json(self.path / "student.json"))


def open_recipe(recipe: str | os.PathLike[str], *, backend: str | None = None, overrides: Sequence[str] = (),
                workspace: str | os.PathLike[str] = ".", options: Options = Options(),
                reporter: Reporter | None = None) -> Context:
    """A context for a recipe; reads it, writes nothing. Raises RecipeError."""
    loaded = load_recipe(Path(recipe), overrides, backend)
    return Context(loaded, Workspace(Path(workspace).resolve()), options, reporter or Silent())


def open_run(rundir: RunDir, workspace: Workspace, *, options: Options = Options(),
             reporter: Reporter | None = None) -> Context:
    """A context for a run that was started earlier, as it lies there: with the recipe that it kept, whatever
    has become of its data since. Raises StorageError."""
    facts = read_json(rundir.path / RUN_FILE)
    base = (workspace.root / facts["base"]).resolve()
    loaded = load_resolved(rundir.path / "recipe.resolved.json", rundir.path / "recipe.yaml", base)
    ctx = Context(loaded, workspace, options, reporter or Silent())
    ctx.run_name, ctx.rundir = rundir.path.name, rundir
    return ctx


def check_unchanged(ctx: Context) -> None:
    """Raises UsageError for a run from disk that would now become another one: going on would write over
    it."""
    if ctx.run_name != ctx.name_of_recipe():
        raise UsageError(Problem(
            "the recipe's data, or what distillctl makes of the recipe, has changed since this run was "
            "started",
            where=str(ctx.rundir.path), hint="start a new one: distillctl run RECIPE"))


@contextmanager
def working_on(ctx: Context) -> Iterator[None]:
    """Hold the run, with its recipe written down. Raises UsageError when another process works on it."""
    from distillctl.servers import stop_left_behind

    ctx.rundir.create()
    stop_left_behind(ctx.workspace, lambda text: ctx.reporter.note(text, "warning"), ctx.options.offline)
    try:
        with exclusive_lock(ctx.rundir.path / ".lock"):
            write_text(ctx.path("recipe.yaml"), ctx.loaded.text)
            write_json(ctx.path("recipe.resolved.json"), ctx.loaded.resolved_json())
            write_json(ctx.path(RUN_FILE), {
                "format": 1, "recipe": ctx.recipe.name, "run": ctx.run_name,
                "base": os.path.relpath(ctx.loaded.base_dir, ctx.workspace.root)})
            yield
    except StorageError as error:
        if "in use by another process" in str(error):
            raise UsageError(*error.problems) from None
        raise


def run(recipe: str | os.PathLike[str], *, backend: str | None = None, overrides: Sequence[str] = (),
        workspace: str | os.PathLike[str] = ".", options: Options = Options(), yes: bool = False,
        until: str | None = None, reporter: Reporter | None = None) -> Run:
    """Run a recipe to its verdict, going on where an earlier run of it ended.

    yes: agree to what it costs and to data leaving this machine; without it such a run is refused.
    Raises RecipeError, DataError, UsageError before anything is spent; TeacherError, BudgetError,
    BackendError, StudentError when the run fails. What was done until then is kept.
    """
    ctx = open_recipe(recipe, backend=backend, overrides=overrides, workspace=workspace, options=options,
                      reporter=reporter)
    with working_on(ctx):
        plan = make_plan(ctx, until)
        plan.check()
        if plan.needs_consent and not yes:
            raise UsageError(Problem(plan.consent_text, hint="agree with yes=True"))
        execute(ctx, until)
    return Run(ctx.rundir)


def load_run(name: str | os.PathLike[str], *, workspace: str | os.PathLike[str] = ".") -> Run:
    """A run by its folder, `<recipe>/<run>` or a part of its name. Raises UsageError."""
    return Run(Workspace(Path(workspace).resolve()).find_run(os.fspath(name)))


def latest_runs(recipe: str, workspace: Workspace) -> list[Run]:
    """A recipe's finished runs: the latest of each backend and model."""
    latest: dict[str, Run] = {}
    for rundir in workspace.all_runs(recipe):
        if (rundir.path / "metrics.json").exists():
            latest[rundir.path.name.rsplit("-", 1)[0]] = Run(rundir)
    return list(latest.values())


def compare(runs: Sequence[Run]) -> ComparisonTable:
    """Runs side by side. Raises DataError when their test sets or the evaluator's versions differ."""
    from distillctl.evaluate.compare import compare_runs

    if not runs:
        raise DataError("there is nothing to compare")
    newest = max((run.evaluator for run in runs if run.evaluator), default=None)
    if older := [run.name for run in runs if run.evaluator != newest]:
        raise DataError(*(Problem(
            f"{name} was scored by another version of the evaluator than the newest run",
            hint=f"score it again, which asks nobody: distillctl attach {name}") for name in older))
    return compare_runs([(run.name, run.metrics) for run in runs], {run.name: run.settings for run in runs})


def _flat(value: JSON, prefix: str = "") -> dict[str, JSON]:
    """A nested mapping by dotted field."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, inner in value.items()
            for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}
