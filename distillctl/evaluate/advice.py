"""What to try next, most promising first: read from the error ledger and the other entrants."""

from __future__ import annotations

from distillctl.evaluate.findings import Findings, unconnected
from distillctl.evaluate.wording import about, gap, gap_range, percent, plural, times

NOTABLE = 0.2  # share of the student's wrong answers from which a cause is named


def next_steps(found: Findings, word: str, settled: bool, needed: int | None, speed_open: bool) -> list[str]:
    """Steps for this verdict."""
    broken = _what_is_broken(found)
    quality = _levers(found)
    speed = _about_speed(found, speed_open)
    items = [f"Collect more test items: {about(needed, 'item')} in all would settle the verdict, if what was "
             f"measured on these {found.versus.n:,} holds."] if needed else []
    part = _about_cascade(found, word)
    if word == "not ready":
        return [*broken, *_about_baselines(found), *part, *quality, *items]
    if found.versus.drop.value > found.spec.max_drop:
        return [*broken, *_about_baselines(found), *part, *quality, *speed, *items]
    ready = ["Let the student answer beside the teacher on real traffic and compare, before it answers alone."
             ] if word == "viable" and settled and not (broken or found.as_good or found.behind) else []
    slices = ["Look at the slices that fall behind before anything is replaced: more training rows of them, "
              "or leave them to the teacher."] if found.behind else []
    return [*broken, *_about_baselines(found), *slices, *items, *speed, *ready, *quality]


def _about_cascade(found: Findings, word: str) -> list[str]:
    """The student may be worth it for a part of the traffic, though not for all of it."""
    one = found.cascade
    if word == "viable" or one is None or not one.worth_it or one.answered.k == one.answered.n:
        return []
    return [f"Use it for a part: where its answer has a probability of {one.threshold:g} or more it answers "
            f"{percent(one.answered.share.value)} of the items, with the teacher for the rest the whole is "
            f"{gap(one.drop.value)} the teacher alone (95 % interval {gap_range(one.drop)})."]


def _what_is_broken(found: Findings) -> list[str]:
    """Findings that make every other figure worthless until they are mended."""
    steps = []
    student, teacher = found.student, found.teacher
    if not teacher.accuracy.k:
        steps.append("Check the expected answers and the prompt first: the teacher is right on no item"
                     + (", because none of its answers could be read." if teacher.invalid.k == teacher.n
                        else "."))
    if student.invalid.k == student.n:
        steps.append("Look at the student's raw answers: not one could be read. Does it end its answer, is "
                     "the token limit long enough, does it see the same prompt as in training?")
    if student.accuracy.k and unconnected(student):
        steps.append("Look at twenty items with what is expected of them and what was answered, before "
                     "anything is trained again: could a person who sees only the prompt tell the answer? "
                     "If not, this is not a bounded task; if so, the labels stand with the wrong items.")
    for one in found.versus_base:
        if one.difference.high < 0:
            steps.append("Training made the model worse: untrained it is right on "
                         f"{percent(found.share_of(one.second))}. Check the training rows, lower the "
                         "learning rate or train for fewer epochs.")
        elif one.difference.low <= 0 and found.could_take_over(one.second):
            steps.append(f"Try the untrained model as it is: it {found.compared(one)}, without training.")
        elif one.difference.low <= 0 and (parts := found.clearer_parts(one.second)):
            steps.append(f"Training helps with {parts}, untrained in brackets, but not yet clearly with "
                         "whole answers, which count only when all is right: train longer, or on more rows.")
        elif one.difference.low <= 0:
            steps.append("Training shows no clear effect against the untrained model: train longer, raise "
                         "the learning rate, and look whether the training loss falls.")
    if found.constant_does_as_well and student.accuracy.k:
        steps.append(f"Look at the recall of each label: always answering {found.commonest!r} is as good as "
                     "the student. Train on more rows of the rare labels, and test on more of them.")
    return steps


def _levers(found: Findings) -> list[str]:
    """What would mend the student's wrong answers, the largest share first."""
    if not found.wrong:
        return []
    versus, wrong, invalid = found.versus, found.wrong, found.student.invalid.k
    more = "more training rows, more epochs or a larger student"
    lost = (f"On {_of(versus.compression, wrong)} the teacher is right: try {more}." if found.gold else
            f"See in the ledger who is right where the two differ ({plural(versus.compression, 'item')}); "
            f"where it is the teacher, try {more}.")
    levers = [
        (versus.compression, lost),
        (versus.inherited, f"The teacher makes the same mistake on {_of(versus.inherited, wrong)}: try a "
                           "better teacher or prompt, or train on gold answers."),
        (versus.both_wrong_differently,
         f"On {_of(versus.both_wrong_differently, wrong)} the teacher is wrong too, in another way: check "
         "the expected answers of these items, and whether the task is clear enough."),
        (invalid if invalid < found.student.n else 0,
         f"Constrain the output or raise the token limit: {_of(invalid, wrong)} could not be read."),
    ]
    ranked = sorted((lever for lever in levers if lever[0]), key=lambda lever: -lever[0])
    steps = [text for k, text in ranked if k >= NOTABLE * wrong]
    pair = _worst_confusion(found)
    if pair and pair[2] >= max(3, NOTABLE * wrong):
        expected, said, k = pair
        steps.append(f"Add training rows that tell {expected!r} from {said!r}, or make the difference "
                     f"clearer in the prompt: it says {said!r} for {expected!r} in {_of(k, wrong)}.")
    return steps


def _of(k: int, wrong: int) -> str:
    """"13 of the student's 52 wrong answers"."""
    return f"{'all' if k == wrong else f'{k:,}'} of the student's {plural(wrong, 'wrong answer')}"


def _worst_confusion(found: Findings) -> tuple[str, str, int] | None:
    table = found.student.confusion
    if table is None:
        return None
    pairs = [(table.labels[i], table.labels[j], table.counts[i][j])
             for i in range(len(table.labels)) for j in range(len(table.labels)) if i != j]
    return max(pairs, key=lambda pair: pair[2])


def _about_speed(found: Findings, speed_open: bool) -> list[str]:
    speed, wanted = found.versus.speedup, times(found.spec.min_speedup)
    if speed is None:
        missing = [who for who, one in (("teacher", found.teacher), ("student", found.student))
                   if one.latency is None]
        if not missing:
            return ["Time more requests of both: too few were timed to compare their speed."]
        how = (": ask a live one, or add `latency_s` to the recording" if missing == ["teacher"] else "")
        return [f"Time the {' and the '.join(missing)}{how}; without it the verdict rests on quality alone."]
    if speed_open:
        return ["Time more requests: the interval of the speed-up holds the one that is asked for."]
    if speed.value < found.spec.min_speedup:
        return [f"Make the student faster than {times(speed.value)}, to the {wanted} asked for: a smaller "
                "model, other hardware, or scoring the labels instead of generating."]
    return []


def _about_baselines(found: Findings) -> list[str]:
    """A cheap baseline that does the job is the better answer, whatever became of the student."""
    steps = []
    for one in found.as_good:
        name = found.called(one.second)
        if found.could_take_over(one.second):
            steps.append(f"Deploy the baseline {name} instead: it {found.compared(one)} as the student, "
                         f"{gap(found.drops[one.second])} the teacher, and is far cheaper to run.")
        else:
            steps.append(f"The cheap baseline {name} {found.compared(one)}: the language model has yet to "
                         "earn its cost.")
    return steps
