"""`distillctl gate`: may this run's student be deployed? For CI: a yes, or a no with its reasons.

Every gate is held against the worse end of a 95 % interval, so that luck with the test items lets nothing
through. What is not known does not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from distillctl import api
from distillctl.errors import DataError, Problem, StorageError, UsageError
from distillctl.evaluate import intervals
from distillctl.evaluate.results import Evaluation, Interval, Metrics
from distillctl.evaluate.wording import percent, points
from distillctl.recipe.models import Recipe
from distillctl.store.files import read_jsonl
from distillctl.store.rundir import RunDir
from distillctl.store.workspace import Workspace
from distillctl.types import JSON, Example


@dataclass(frozen=True)
class GateResult:
    """One gate. value, bound: the estimate and the end of its interval that was held against `limit`; None
    where the run does not know them, which fails the gate."""

    gate: str
    limit: float
    value: float | None
    bound: float | None
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateReport:
    """All gates of a run, in the order of the recipe's reference."""

    run: str
    against: str | None
    gates: list[GateResult]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def as_json(self) -> dict[str, JSON]:
        return {"run": self.run, "against": self.against, "passed": self.passed,
                "gates": [asdict(gate) for gate in self.gates]}


def check_gates(name: str, workspace: Workspace, against: str | None = None) -> GateReport:
    """Hold a finished run against the gates of its recipe.

    against: the deployed run, which must have been scored on the same test items. Raises UsageError where
    no gates are configured, where `gates.max_regression` and `against` do not go together, or a run is
    not finished; DataError where the runs' test items differ; StorageError where the metrics were changed
    after they were made.
    """
    run = workspace.find_run(name)
    recipe = api.open_run(run, workspace).recipe
    spec = recipe.gates
    wanted = spec.model_dump(exclude_none=True)
    where = str(run.path / "recipe.yaml")
    if not wanted:
        raise UsageError(Problem(
            "the run's recipe has no gates, so there is nothing to pass", where, "gates",
            hint="add for example `gates: {min_accuracy: 0.85, max_drop: 0.05}` to the recipe and run it "
                 "again: its stages are reused"))
    if (against is None) != (spec.max_regression is None):
        raise UsageError(Problem(
            "compares with the deployed run, which is not named" if against is None else
            "--against needs the loss that is still allowed", where, "gates.max_regression",
            hint="name it with --against RUN, or take the line out before the first deployment"
            if against is None else "add for example `max_regression: 0.02` and run the recipe again"))
    metrics = _metrics(run)
    results = [_GATES[gate](metrics, limit) for gate, limit in wanted.items() if gate in _GATES]
    deployed = None
    if against is not None and spec.max_regression is not None:
        other = workspace.find_run(against)
        deployed = other.name
        results.append(_regression(run, recipe, metrics, other, spec.max_regression))
    return GateReport(run.name, deployed, results)


def _metrics(run: RunDir) -> Metrics:
    """The run's metrics, as its evaluation left them."""
    metrics = api.Run(run).metrics
    record = run.records().get("evaluate")
    damage = run.damage(record) if record else [Problem(
        "nothing says that these metrics were made by the run", str(run.path / "metrics.json"))]
    if damage:
        raise StorageError(*damage)
    return metrics


def _student(metrics: Metrics) -> Evaluation:
    return next(one for one in metrics.evaluations if one.name == metrics.verdict.student)


def _accuracy(metrics: Metrics, limit: float) -> GateResult:
    share = _student(metrics).accuracy.share
    what = "accuracy" if metrics.gold else "agreement with the teacher (no gold answers)"
    return _at_least("min_accuracy", limit, share, what, percent)


def _drop(metrics: Metrics, limit: float) -> GateResult:
    versus = next(one for one in metrics.comparisons if one.student == metrics.verdict.student)
    return _at_most("max_drop", limit, versus.drop, "drop against the teacher", _points)


def _speedup(metrics: Metrics, limit: float) -> GateResult:
    versus = next(one for one in metrics.comparisons if one.student == metrics.verdict.student)
    if versus.speedup is None:
        return _unknown("min_speedup", limit, "speed-up: unknown, because teacher and student were not both "
                        "timed often enough; an unknown speed-up does not pass")
    return _at_least("min_speedup", limit, versus.speedup, "speed-up", lambda ratio: f"{ratio:.3g} times")


def _invalid(metrics: Metrics, limit: float) -> GateResult:
    return _at_most("max_invalid", limit, _student(metrics).invalid.share, "answers without a valid value",
                    percent)


_GATES: dict[str, Callable[[Metrics, float], GateResult]] = {
    "min_accuracy": _accuracy, "max_drop": _drop, "min_speedup": _speedup, "max_invalid": _invalid}


def _regression(run: RunDir, recipe: Recipe, metrics: Metrics, deployed: RunDir, limit: float) -> GateResult:
    """The loss against the deployed run's student, item by item; groups of the data allowed for."""
    if deployed.path.resolve() == run.path.resolve():
        raise UsageError(Problem("this is the run itself: it cannot be compared with itself",
                                 field="--against", value=run.name, hint="name the run that is deployed"))
    other = _metrics(deployed)
    if other.test_digest != metrics.test_digest:
        raise DataError(Problem(
            f"{run.name} cannot be compared with {deployed.name}: their test items, what is expected of them "
            "or how they are scored differ", hint="run the deployed recipe again on the present data"))
    wrong, wrong_deployed = _student(metrics).wrong, _student(other).wrong
    if wrong is None or wrong_deployed is None:
        return _unknown("max_regression", limit, f"loss against {deployed.name}: unknown, because a run does "
                        "not say which items it has wrong; run it again")
    items = [Example.from_json(row) for row in read_jsonl(run.path / "data/test.jsonl")]
    group = recipe.data.group
    groups = [str(item.fields.get(group)) for item in items] if group else None
    loss = intervals.difference([item.id not in set(wrong_deployed) for item in items],
                                [item.id not in set(wrong) for item in items],
                                groups if groups and len(set(groups)) < len(groups) else None)
    return _at_most("max_regression", limit, loss, f"loss against {deployed.name}", _points)


# --- words ----------------------------------------------------------------------------------------------


def _points(share: float) -> str:
    return f"{points(share)} points"


def _at_least(gate: str, limit: float, found: Interval, what: str, say: Callable[[float], str]) -> GateResult:
    return _result(gate, limit, found.value, found.low, found.low >= limit, found.value >= limit,
                   f"{what} {say(found.value)}, at least {say(found.low)} (95 % interval); "
                   f"{say(limit)} is asked for")


def _at_most(gate: str, limit: float, found: Interval, what: str, say: Callable[[float], str]) -> GateResult:
    return _result(gate, limit, found.value, found.high, found.high <= limit, found.value <= limit,
                   f"{what} {say(found.value)}, at most {say(found.high)} (95 % interval); "
                   f"{say(limit)} is allowed")


def _result(gate: str, limit: float, value: float, bound: float, passed: bool, estimate_passes: bool,
            reason: str) -> GateResult:
    if estimate_passes and not passed:
        reason += "; the estimate passes, its interval does not: more test items would tell"
    return GateResult(gate, limit, value, bound, passed, reason)


def _unknown(gate: str, limit: float, reason: str) -> GateResult:
    return GateResult(gate, limit, None, None, False, reason)


def gates_text(report: GateReport) -> str:
    """The report for a terminal or a CI log: a line a gate."""
    lines = [f"{'pass' if gate.passed else 'FAIL'}  {gate.gate}: {gate.reason}" for gate in report.gates]
    failed = sum(not gate.passed for gate in report.gates)
    lines.append(f"{report.run}: " + (f"{failed} of {len(report.gates)} gates failed" if failed else
                                      f"all {len(report.gates)} gates passed"))
    return "\n".join(lines)
