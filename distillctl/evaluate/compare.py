"""Runs side by side: only on the same test items, chosen between on dev, and with the price of having looked
at several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from distillctl.errors import DataError, Problem
from distillctl.evaluate import stats
from distillctl.evaluate.comparison_results import ComparedRun, ComparisonTable
from distillctl.evaluate.intervals import IN_GROUPS, contrast
from distillctl.evaluate.results import Contrast, Evaluation, Metrics
from distillctl.evaluate.sweet_spot import sweet_spot
from distillctl.types import JSON

Runs = Sequence[tuple[str, Metrics]]
Settings = Mapping[str, Mapping[str, JSON]]
ALPHA = 0.05


def compare_runs(runs: Runs, settings: Settings | None = None) -> ComparisonTable:
    """The students of several runs against each other. settings: by run, how its student was made; only what
    differs is shown. Raises DataError when there is none, when a run is named twice, and for runs that were
    scored on other test items than the first, naming them."""
    _check(runs)
    first = runs[0][1]
    on_dev = _same_dev(runs)
    different = _different(settings or {})
    compared = sorted((_compared(name, metrics, different.get(name, {})) for name, metrics in runs),
                      key=lambda run: -_rank(run.student, on_dev))  # ties as given
    contrasts = _contrasts(compared, on_dev)
    return ComparisonTable(
        task_kind=first.task_kind, gold=first.gold, test_digest=first.test_digest, n=compared[0].student.n,
        ranked_on="dev" if on_dev else "test",
        sweet_spot=sweet_spot(compared) if on_dev and len(compared) > 1 else None,
        runs=compared, references=_references(runs), contrasts=contrasts,
        notes=_notes(runs, compared, contrasts, on_dev))


def _check(runs: Runs) -> None:
    if not runs:
        raise DataError("there is nothing to compare")
    names = [name for name, _ in runs]
    problems = [Problem("the run is named twice", value=name) for name in dict.fromkeys(names)
                if names.count(name) > 1]
    first_name, first = runs[0]
    problems += [
        Problem(f"{name} cannot be compared with {first_name}: its test items, what is expected of them or "
                "how they are scored differ",
                hint="compare runs of the same data, split and scoring; run the others again on it")
        for name, metrics in runs if metrics.test_digest != first.test_digest]
    if problems:
        raise DataError(*problems)


def _same_dev(runs: Runs) -> bool:
    """Whether all students have answered the same dev items."""
    digests = {metrics.dev_digest for _, metrics in runs}
    return len(digests) == 1 and None not in digests and all(
        _named(metrics, metrics.verdict.student).dev for _, metrics in runs)


def _rank(student: Evaluation, on_dev: bool) -> float:
    return (student.dev if on_dev else student.accuracy).share.value


def _different(settings: Settings) -> dict[str, dict[str, JSON]]:
    """Of each run's settings those that are not the same in all; a backend's, in all that were trained by
    it."""
    names = dict.fromkeys(name for one in settings.values() for name in one)
    differ = [name for name in names
              if len({(_is_block(name, one), repr(one.get(name))) for one in settings.values()
                      if _concerns(name, one)}) > 1]
    return {run: {name: one.get(name) for name in differ if _concerns(name, one) and not _is_block(name, one)}
            for run, one in settings.items()}


def _concerns(name: str, settings: Mapping[str, JSON]) -> bool:
    """Whether a run with these settings could have this one: no backend looks at another one's."""
    return not name.startswith("backends.") or name.startswith(f"backends.{settings.get('backend')}.")


def _is_block(name: str, settings: Mapping[str, JSON]) -> bool:
    """Whether what others have under this name is a block here, or lies in one that is null here."""
    return any(other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in settings)


def _compared(name: str, metrics: Metrics, settings: Mapping[str, JSON]) -> ComparedRun:
    student = metrics.verdict.student
    versus = next(one for one in metrics.comparisons if one.student == student)
    return ComparedRun(run=name, settings=dict(settings), student=_named(metrics, student), drop=versus.drop,
                       speedup=versus.speedup, economics=metrics.economics, verdict=metrics.verdict)


def _named(metrics: Metrics, name: str) -> Evaluation:
    return next(one for one in metrics.evaluations if one.name == name)


def _references(runs: Runs) -> list[Evaluation]:
    """Teachers, base models and baselines; one that several runs share stands once."""
    found: dict[tuple, Evaluation] = {}
    for role in ("teacher", "base", "baseline"):
        for _, metrics in runs:
            for one in metrics.evaluations:
                if one.role == role:
                    answers = tuple(one.wrong) if one.wrong is not None else one.accuracy.k
                    found.setdefault((role, one.name, one.model, answers), one)
    return list(found.values())


def _contrasts(compared: Sequence[ComparedRun], on_dev: bool) -> list[Contrast]:
    """The first student against each of the others whose items are known, on test.

    One that was picked on test was picked by looking at all, so its p-values are adjusted for every pair; one
    from dev, for the pairs that it is in.
    """
    known = [run for run in compared if run.student.wrong is not None]
    pairs = [_contrast(one, other) for one, other in combinations(known, 2)
             if not on_dev or one is compared[0]]
    adjusted = zip(pairs, stats.holm([pair.p for pair in pairs]), strict=True)
    return [pair.model_copy(update={"p_holm": p}) for pair, p in adjusted if pair.first == compared[0].run]


def _contrast(one: ComparedRun, other: ComparedRun) -> Contrast:
    wrong, other_wrong = set(one.student.wrong), set(other.student.wrong)
    either = sorted(wrong | other_wrong)
    rest = [True] * (one.student.n - len(either))  # both right
    return contrast(one.run, [item not in wrong for item in either] + rest,
                    other.run, [item not in other_wrong for item in either] + rest)


def _notes(runs: Runs, compared: Sequence[ComparedRun], contrasts: Sequence[Contrast], on_dev: bool,
           ) -> list[str]:
    notes = []
    count, best = len(compared), compared[0]
    if count > 1 and on_dev:
        notes.append(f"{count} students were compared, and ranked on the dev split of {best.student.dev.n:,} "
                     "items: so the first one's test figure is not optimistic. That of one which you pick by "
                     "its test figure is.")
    elif count > 1:
        notes.append(f"{count} students were compared on the same test items; the best one's figure "
                     "is optimistic, because it was picked by looking at all of them.")
    close = [one.second for one in contrasts if one.p_holm >= ALPHA]
    if close:
        over = "its pairs" if on_dev else "all pairs"
        notes.append(f"On test {best.run} is not clearly better than {' or '.join(close)} (exact McNemar, "
                     f"Holm over {over}, {ALPHA:g}).")
    if len(contrasts) < count - 1:
        notes.append("Some runs do not say which items they have wrong: their difference from the best is "
                     "unknown.")
    teachers = {(one.model, tuple(one.wrong or ())) for _, metrics in runs for one in metrics.evaluations
                if one.role == "teacher"}
    if len(teachers) > 1:
        notes.append("The runs have different teachers: each drop is against the run's own.")
    if contrasts and any(run.drop.method.endswith(IN_GROUPS) for run in compared):
        notes.append("Test items come in groups, which the differences between runs do not allow for: their "
                     "intervals are too narrow.")
    return notes
