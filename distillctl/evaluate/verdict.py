"""The verdict: may the student take the teacher's place, on the recipe's thresholds, and is that certain.

The word comes from the point estimates; *settled* means that no drop and no speed-up inside their 95 %
intervals would give another one. A bound of a 95 % interval is a one-sided test at 2.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distillctl.evaluate.advice import next_steps
from distillctl.evaluate.findings import MIN_ITEMS, Findings, unconnected
from distillctl.evaluate.results import (
    Cascade,
    Comparison,
    Contrast,
    Evaluation,
    Interval,
    Verdict,
)
from distillctl.evaluate.stats import items_needed
from distillctl.evaluate.wording import about, gap, gap_range, percent, plural, points, times
from distillctl.recipe.models import VerdictSpec

Word = Literal["viable", "marginal", "not ready"]


@dataclass(frozen=True)
class Decision:
    """The word and its certainty.

    crossed: thresholds of the drop that its interval takes in and that the word hangs on. speed_open: the
    interval of the speed-up leaves the word open.
    """

    word: Word
    settled: bool
    needed: int | None = None
    crossed: tuple[float, ...] = ()
    speed_open: bool = False


def decide(spec: VerdictSpec, *, gold: bool, evaluations: Sequence[Evaluation],
           comparisons: Sequence[Comparison], contrasts: Sequence[Contrast] = (),
           design_effect: float = 1.0, cascade: Cascade | None = None,
           behind: Sequence[str] = ()) -> Verdict:
    """The verdict on the one student among `evaluations`.

    comparisons: the student, and baselines where there are any, against the teacher. contrasts: the student
    (first) against base model and baselines. design_effect: of the drop, where items come in groups.
    cascade, behind: what is said of them, on which the word does not depend.
    """
    found = Findings.gather(spec, gold, evaluations, comparisons, contrasts, cascade, behind)
    decision = judge(spec, found.versus.drop, found.versus.speedup, discordance(found.versus),
                     worthless=not found.student.accuracy.k or unconnected(found.student),
                     design_effect=design_effect)
    return Verdict(
        student=found.student.name, word=decision.word, on_quality_alone=found.versus.speedup is None,
        settled=decision.settled, needed=decision.needed, sentence=sentence(found, decision),
        reasons=reasons(found, decision), next_steps=next_steps(found, decision.word, decision.settled,
                                                                decision.needed, decision.speed_open))


def judge(spec: VerdictSpec, drop: Interval, speedup: Interval | None, discordance: float, *,
          worthless: bool = False, design_effect: float = 1.0) -> Decision:
    """The word, whether it is settled, and the test items that would settle it.

    worthless: the student is right on nothing, or as often as by chance. It is not ready, however little the
    teacher does; no number of items is then named, because something other than their number is wrong.
    """
    speed = (speedup.low, speedup.value, speedup.high) if speedup else (None, None, None)
    word = _word(spec, drop.value, speed[1])
    if worthless and word != "not ready":
        return Decision("not ready", settled=False)
    low, high = _word(spec, drop.low, speed[2]), _word(spec, drop.high, speed[0])
    may_be_fast = speedup is None or speedup.high >= spec.min_speedup
    bounds = {spec.max_drop, spec.marginal_drop} if may_be_fast else {spec.marginal_drop}
    crossed = tuple(sorted(bound for bound in bounds if drop.low <= bound < drop.high))
    settled = low == high and (speedup is not None or not crossed)
    if settled:
        return Decision(word, settled=True)
    per_bound = [items_needed(drop.value, discordance, bound) for bound in crossed]
    needed = None if not crossed or None in per_bound else round(design_effect * max(per_bound))
    return Decision(word, False, needed, crossed,
                    speed_open=_word(spec, drop.value, speed[0]) != _word(spec, drop.value, speed[2]))


def discordance(comparison: Comparison) -> float:
    """Share of items on which one of the two alone is right, with Bonett and Price's adjustment (2012), so
    that none seen is not taken for none there."""
    return (comparison.compression + comparison.corrected + 2) / (comparison.n + 2)


def quality_word(spec: VerdictSpec, drop: float) -> Word:
    """The word for a drop, whatever the speed."""
    if drop > spec.marginal_drop:
        return "not ready"
    return "viable" if drop <= spec.max_drop else "marginal"


def _word(spec: VerdictSpec, drop: float, speedup: float | None) -> Word:
    word = quality_word(spec, drop)
    fast = speedup is not None and speedup >= spec.min_speedup
    return "marginal" if word == "viable" and not fast else word


# --- in words ---------------------------------------------------------------------------------------------


def sentence(found: Findings, decision: Decision) -> str:
    """One plain sentence that says what was found, and nothing that sounds better than it is."""
    drop, speed = found.versus.drop, found.versus.speedup
    does = "is right on" if found.gold else "gives the teacher's answer on"
    share, items = percent(found.student.accuracy.share.value), plural(found.versus.n, "test item")
    text = (f"{_opening(decision, speed)}: the student {does} {share} of {items}, {gap(drop.value)} the "
            f"teacher (95 % interval {gap_range(drop)})")
    if speed is not None:
        slow = speed.value < found.spec.min_speedup
        text += f", {'only ' if slow else ''}{times(speed.value)} as fast"
        if found.timed_by_recording:
            text += " by recorded latencies"
    tail = []
    if decision.word != "not ready":
        if speed is None:
            tail.append("its speed-up is unknown, so this does not show that it is viable")
        if found.constant_does_as_well:
            tail.append(f"but always answering {found.commonest!r} would be right on "
                        f"{percent(found.commonest_share)}")
        tail += [f"but the cheap baseline {found.called(one.second)} {found.compared(one)}"
                 for one in found.as_good]
    elif not found.student.accuracy.k:
        tail.append("it is right on nothing")
    elif unconnected(found.student):
        tail.append(f"its answers have no clear connection with {found.measure}")
    if decision.needed:
        more = " and more timed requests" if decision.speed_open else ""
        tail.append(f"{about(decision.needed, 'test item')} in all{more} would settle it")
    return "; ".join([text, *tail]) + "."


def _opening(decision: Decision, speed: Interval | None) -> str:
    if decision.word == "not ready":
        return "Not ready" if decision.settled else "Not ready so far, not settled"
    alone = ", on quality alone" if speed is None else ""
    if decision.settled:
        return f"{decision.word.capitalize()}{alone}"
    return f"Not settled, {decision.word} so far{alone}"


def reasons(found: Findings, decision: Decision) -> list[str]:
    """What the verdict rests on, the weightiest first."""
    spec, versus, student = found.spec, found.versus, found.student
    said = [_about_drop(spec, versus.drop, versus.n), _about_certainty(spec, versus.drop, decision),
            _about_speed(found)]
    if not found.gold:
        said.append("There are no gold answers: the teacher counts as right and every other answer as wrong, "
                    "so this measures agreement, not correctness.")
    elif not found.teacher.accuracy.k:
        said.append("The teacher is right on no item: as a measure it is worth nothing here.")
    if not student.accuracy.k:
        said.append("The student is right on no item.")
    elif unconnected(student):
        said.append(_about_chance(found))
    if found.wrong and found.gold:
        said.append(_about_errors(found))
    if student.invalid.k:
        said.append(f"{plural(student.invalid.k, 'item')} of {student.invalid.n:,} got no valid answer; "
                    "they count as wrong.")
    if found.gold and versus.drop.high < 0:
        said.append("The student is better than its teacher on these items: the whole interval is above it.")
    if found.constant_does_as_well:
        better = student.accuracy.share.value > found.commonest_share
        said.append(f"Always answering {found.commonest!r} would be right on "
                    f"{percent(found.commonest_share)}: the student is {'not clearly' if better else 'not'} "
                    "better than that.")
    said += [_about_contrast(one, "the untrained model", found) for one in found.versus_base]
    said += [_about_contrast(one, f"the baseline {found.called(one.second)}", found)
             for one in found.versus_baseline]
    said += found.behind
    if versus.n < MIN_ITEMS:
        said.append(f"With {plural(versus.n, 'test item')} every figure here is rough; use {MIN_ITEMS} at "
                    "the very least, some hundred for a decision.")
    return [one for one in said if one]


def _about_drop(spec: VerdictSpec, drop: Interval, n: int) -> str:
    most, marginal = points(spec.max_drop), points(spec.marginal_drop)
    # near a threshold the rounded figure would look like the threshold itself
    near = any(drop.value != bound and points(drop.value) == points(bound)
               for bound in (spec.max_drop, spec.marginal_drop))
    value = points(drop.value, 2 if near else 1)
    if drop.value > spec.marginal_drop:
        return f"The drop of {value} points is above the {marginal} up to which a student is marginal."
    if drop.value > spec.max_drop:
        return (f"The drop of {value} points is above the {most} that a viable student may lose, within the "
                f"{marginal} of a marginal one.")
    if drop.value > 0:
        return f"The drop of {value} points is within the {most} that a viable student may lose."
    return f"Nothing is lost on these {n:,} items: the student is {gap(drop.value)} the teacher."


def _about_certainty(spec: VerdictSpec, drop: Interval, decision: Decision) -> str:
    if decision.settled:
        return "The 95 % intervals leave no other verdict open."
    text = f"Not settled: the 95 % interval of the drop, {gap_range(drop)}, "
    if decision.crossed:
        text += f"takes in {' and '.join(map(points, decision.crossed))} points, where the verdict changes"
    else:
        text += "leaves the verdict to other findings"
    if decision.speed_open:
        text += "; the interval of the speed-up takes in the one that is asked for"
    if drop.value > spec.max_drop and decision.crossed:
        text += ("; if the estimate holds, more test items cannot make the student viable, only a better "
                 "student can")
    return text + "."


def _about_speed(found: Findings) -> str:
    speed, wanted = found.versus.speedup, times(found.spec.min_speedup)
    if speed is None:
        return ("The speed-up is unknown, because teacher and student were not both timed often enough: the "
                "verdict is on quality alone, and never viable.")
    text = (f"The student is {times(speed.value)} as fast as the teacher (95 % interval {speed.low:.3g} to "
            f"{speed.high:.3g}); {wanted} is asked for")
    if found.timed_by_recording:
        text += "; it rests on recorded latencies, whose hardware and load are not known here"
    return text + "."


def _about_chance(found: Findings) -> str:
    """Why a student that is right as often as by chance is: the labels, the task, or the training."""
    alike = (f"are right about as often as by chance, however often that is: they have no clear connection "
             f"with {found.measure}")
    if unconnected(found.teacher):
        return (f"The answers of teacher and student {alike}. The expected answers are wrong or mixed up, or "
                "they do not follow from the prompt, so that this is not a bounded task.")
    return (f"The student's answers {alike}. What the teacher says does not follow from the prompt, so that "
            "this is not a bounded task, or its labels are mixed up, or the training has failed.")


def _about_errors(found: Findings) -> str:
    versus = found.versus
    parts = [f"the teacher has {versus.compression:,} of them right"]
    if versus.inherited:
        parts.append(f"made the same mistake on {versus.inherited:,}")
    if versus.both_wrong_differently:
        parts.append(f"another one on {versus.both_wrong_differently:,}")
    text = f"The student is wrong on {plural(found.wrong, 'item')}: {', '.join(parts)}"
    if versus.corrected:
        text += f". It is right on {versus.corrected:,} that the teacher has wrong"
    return f"{text} (exact McNemar p = {versus.mcnemar_p:.2g})."


def _about_contrast(one: Contrast, who: str, found: Findings) -> str:
    share = found.share_of(one.second)
    text = f"{who[0].upper()}{who[1:]} is right on {percent(share)}" if found.gold else (
        f"{who[0].upper()}{who[1:]} agrees with the teacher on {percent(share)}")
    value = one.difference
    outcome = "better" if value.low > 0 else "worse" if value.high < 0 else "not clearly better"
    return (f"{text}: the student is {outcome} (difference {points(value.value)} points, 95 % "
            f"interval {points(value.low)} to {points(value.high)}).")
