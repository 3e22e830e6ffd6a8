"""The error ledger: on which items teacher and student are wrong, and who is to blame.

*compression*: the teacher is right, the student wrong. *corrected*: the other way round. Both wrong:
*inherited* with the same answer, else *both wrong, differently*. The cells and the items on which both are
right add up to the planned items.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from distillctl.evaluate import intervals, stats
from distillctl.evaluate.calibration import confidence
from distillctl.evaluate.metrics import Scored, part_scores, same_answer
from distillctl.evaluate.results import Cell, Comparison, Interval, LedgerItem
from distillctl.evaluate.secondary import part_drops, secondary_drops
from distillctl.task import Task
from distillctl.types import JSON, Example, Prediction


def cell(teacher_right: bool, student_right: bool, same: bool) -> Cell | None:
    """The cell of one item; None when both are right."""
    if teacher_right and student_right:
        return None
    if teacher_right:
        return "compression"
    if student_right:
        return "corrected"
    return "inherited" if same else "both_wrong_differently"


def part_cells(task: Task, expected: JSON, teacher: Prediction | None, student: Prediction | None,
               ) -> dict[str, Cell]:
    """The cell of every field or check of one item that one of the two has wrong; none for labels, and none
    where nothing is expected."""
    if expected is None:  # the teacher, who is the measure, gave no valid answer
        return {}
    scores = [part_scores(task, who, expected) for who in (teacher, student)]
    found = {}
    for name in scores[0]:
        right = [score[name] == 1.0 for score in scores]
        where = cell(*right, same=not any(right) and _same_part(task, name, teacher, student, expected))
        if where:
            found[name] = where
    return found


def _same_part(task: Task, name: str, teacher: Prediction | None, student: Prediction | None,
               expected: JSON) -> bool:
    """Whether both say the same of a field; a check of a text looks at the whole text."""
    if task.kind != "structured" or None in (teacher, student) or None in (teacher.value, student.value):
        return same_answer(task, student, teacher, expected)
    if (name in teacher.value) != (name in student.value):
        return False
    return name not in teacher.value or task.score(
        student.value, {name: teacher.value[name]}).correct


def against_teacher(task: Task, examples: Sequence[Example], expected: Sequence[JSON], teacher: Scored,
                    student: Scored, name: str, *, speedup: Interval | None = None,
                    groups: Sequence[Hashable] | None = None, ledger: bool = True,
                    temperature: float | None = None) -> Comparison:
    """Compare `name` with the teacher over the same items. ledger: keep the items, and compare in every
    metric; temperature: of the student's probabilities."""
    same = [same_answer(task, s, t, wanted)
            for s, t, wanted in zip(student.answers, teacher.answers, expected, strict=True)]
    cells = [cell(*flags) for flags in zip(teacher.right, student.right, same, strict=True)]
    items = [_item(task, examples[i], expected[i], where, teacher.answers[i], student, i, temperature)
             for i, where in enumerate(cells) if where] if ledger else []
    lost, won = cells.count("compression"), cells.count("corrected")
    return Comparison(
        student=name, n=len(cells), both_right=cells.count(None), compression=lost, corrected=won,
        inherited=cells.count("inherited"), both_wrong_differently=cells.count("both_wrong_differently"),
        drop=intervals.difference(teacher.right, student.right, groups),
        mcnemar_p=stats.mcnemar_exact(lost, won), mcnemar_mid_p=stats.mcnemar_mid_p(lost, won),
        agreement=intervals.count(same, groups), speedup=speedup, items=items,
        other_drops=secondary_drops(task, expected, teacher, student, groups) if ledger else {},
        part_drops=part_drops(teacher, student, groups) if ledger else {})


SUSPECT = 0.9  # probability of its answer from which a student counts as sure


def label_suspects(versus: Comparison) -> list[str]:
    """Ids of items whose expected answer may be wrong, the surest first: the student is sure of another one,
    and its teacher gives the same."""
    sure = [item for item in versus.items
            if item.cell == "inherited" and (item.student_confidence or 0.0) >= SUSPECT]
    return [item.id for item in sorted(sure, key=lambda item: -item.student_confidence)]


def _item(task: Task, example: Example, expected: JSON, where: Cell, teacher: Prediction | None,
          student: Scored, i: int, temperature: float | None) -> LedgerItem:
    answer = student.answers[i]
    return LedgerItem(
        id=example.id, cell=where, prompt=task.render(example.fields, example.source)[-1]["content"],
        expected=expected, teacher=_said(teacher), student=_said(answer), parts=dict(student.parts[i]),
        part_cells=part_cells(task, expected, teacher, answer),
        student_confidence=confidence(answer.answer.label_logprobs, answer.value, temperature)
        if answer else None)


def _said(answer: Prediction | None) -> JSON:
    """The parsed value, else the raw output, else None."""
    if answer is None:
        return None
    return answer.answer.output if answer.value is None else answer.value
