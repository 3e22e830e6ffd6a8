"""What the student would save: cost of 1,000 requests, break-even, and what if a price were another."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distillctl.evaluate.cost import machines, server
from distillctl.evaluate.results import Cascade, Cost, Economics, Evaluation, Scenario, VolumePoint
from distillctl.evaluate.wording import money, percent, plural
from distillctl.recipe.models import EconomicsSpec

AS_MEASURED = "as measured"
_SPAN = 2  # decades of volume drawn to either side
_USUAL_VOLUME = 10_000


@dataclass(frozen=True)
class Paid:
    """What getting the student cost, in US dollars, and where the figure is from; None where unknown."""

    usd: float | None = None
    source: str = "what this run spent is not known"


@dataclass(frozen=True)
class Rate:
    """US dollars: of a request, and of a machine a day that answers `capacity` requests in it."""

    request: float
    machine: float = 0.0
    capacity: float = math.inf

    def day(self, volume: float) -> float:
        """What a day with this many requests costs."""
        fixed = machines(volume, self.capacity) * self.machine if self.machine else 0.0
        return volume * self.request + fixed

    def times(self, factor: float) -> Rate:
        return Rate(self.request * factor, self.machine * factor, self.capacity)


def economics(spec: EconomicsSpec, teacher: Evaluation, student: Evaluation, paid: Paid,
              cascade: Cascade | None = None) -> Economics:
    """The economics of this student in its teacher's place."""
    asked = _rate(teacher.cost)
    fixed = _always_on(spec, student)
    answered = fixed or _rate(student.cost)
    rates = [(AS_MEASURED, asked, answered)]
    if asked and answered:
        rates += [("the teacher at half its price" + ("" if spec.teacher.batch else ", as in a batch"),
                   asked.times(0.5), answered),
                  ("the student at half its price", asked, answered.times(0.5)),
                  ("the student at twice its price", asked, answered.times(2))]
    mixed = None
    if cascade and asked and answered:
        mixed = Rate(answered.request + (1 - cascade.answered.share.value) * asked.request, answered.machine,
                     answered.capacity)
        rates.append((f"the cascade at {cascade.threshold:g}", asked, mixed))
    scenarios = [_scenario(name, spec.requests_per_day, t, s, paid.usd) for name, t, s in rates]
    sentence = _sentence(spec, scenarios[0], paid, answered)
    if mixed and (more := _with_cascade(spec, scenarios[-1])):
        sentence += f" {more}"
    return Economics(
        requests_per_day=spec.requests_per_day, teacher=teacher.cost, student=student.cost,
        fixed_usd_per_day=fixed.machine if fixed else None, training_usd=paid.usd,
        training_source=paid.source, scenarios=scenarios,
        curve=_curve(spec.requests_per_day, asked, answered, mixed) if asked and answered else [],
        unknown=_unknown(spec, teacher, student, answered, paid),
        assumed=_assumed(spec, teacher, student), from_recipe=_from_recipe(spec, teacher, student, fixed),
        sentence=sentence)


def _rate(cost: Cost | None) -> Rate | None:
    return Rate(cost.usd_per_1000 / 1000) if cost else None


def _always_on(spec: EconomicsSpec, student: Evaluation) -> Rate | None:
    """The rate of a machine or endpoint that is paid round the clock; None where there is none."""
    found = server(spec, student.role, student.throughput, student.latency, student.usd_per_hour)
    return Rate(0.0, 24 * found.usd_per_hour, found.capacity) if found and found.always_on else None


def _scenario(name: str, volume: int | None, teacher: Rate | None, student: Rate | None,
              training: float | None) -> Scenario:
    made = Scenario(name=name, teacher_usd_per_1000=_per_1000(teacher, volume),
                    student_usd_per_1000=_per_1000(student, volume), pays=None)
    if teacher is None or student is None:
        return made
    if student.machine:
        made = made.model_copy(update={"pays_above_per_day": _pays_above(teacher, student)})
        if volume is None:
            return made
    saving = teacher.request - student.request if not student.machine else (
        (teacher.day(volume) - student.day(volume)) / volume)
    if saving <= 0 or training is None:
        return made.model_copy(update={"pays": saving > 0})
    requests = math.ceil(training / saving - 1e-9)
    return made.model_copy(update={"pays": True, "break_even_requests": requests,
                                   "break_even_days": requests / volume if volume else None})


def _per_1000(rate: Rate | None, volume: int | None) -> float | None:
    if rate is None or (rate.machine and volume is None):
        return None
    return 1000 * rate.day(volume) / volume if volume else 1000 * rate.request


def _pays_above(teacher: Rate, student: Rate) -> int | None:
    """The volume from which one machine costs less than the teacher; None where even a full one does not."""
    gain = teacher.request - student.request
    if gain <= 0 or student.machine / gain > student.capacity:
        return None
    return math.ceil(student.machine / gain)


def _curve(volume: int | None, teacher: Rate, student: Rate, mixed: Rate | None) -> list[VolumePoint]:
    middle = math.log10(volume or _USUAL_VOLUME)
    start = max(0.0, middle - _SPAN)
    steps = 6 * _SPAN * 2
    volumes = sorted({round(10 ** (start + (middle + _SPAN - start) * i / steps)) for i in range(steps + 1)})
    return [VolumePoint(requests_per_day=v, teacher_usd=teacher.day(v), student_usd=student.day(v),
                        cascade_usd=mixed.day(v) if mixed else None) for v in volumes]


# --- in words ---------------------------------------------------------------------------------------------


def _sentence(spec: EconomicsSpec, found: Scenario, paid: Paid, student: Rate | None) -> str:
    t, s = found.teacher_usd_per_1000, found.student_usd_per_1000
    fixed = _about_fixed(found, student)
    if found.pays is None:
        missing = [who for who, usd in (("teacher", t), ("student", s)) if usd is None]
        return fixed or ("What the student would save is unknown, because the cost of the "
                         f"{' and of the '.join(missing)} is.")
    against = f"1,000 requests would cost {money(s)} instead of {money(t)}"
    if not found.pays:
        than = "as dear as the teacher" if s == t else "dearer than the teacher"
        return f"{fixed} The student would save nothing, it is {than}: {against}.".lstrip()
    text = f"{fixed} If the student took over, {against}: {percent(1 - s / t)} less.".lstrip()
    if paid.usd is None:
        return f"{text} What it cost to get is unknown, and so is the break-even."
    if not found.break_even_requests:
        return f"{text} Getting it cost nothing that has a price."
    return f"{text} The {money(paid.usd)} that it cost to get are paid back after {_back(spec, found)}."


def _about_fixed(found: Scenario, student: Rate | None) -> str:
    """From which volume on a machine that is always on pays at all; nothing for one that is not."""
    if student is None or not student.machine or found.teacher_usd_per_1000 is None:
        return ""
    if found.pays_above_per_day is None:
        return "A machine that is always on would not pay at any volume, even when it is always busy."
    return (f"A machine that is always on ({money(student.machine)} a day) pays from "
            f"{plural(found.pays_above_per_day, 'request')} a day on.")


def _with_cascade(spec: EconomicsSpec, found: Scenario) -> str:
    """The same of teacher and student together."""
    t, s = found.teacher_usd_per_1000, found.student_usd_per_1000
    if found.pays is None:
        return ""
    text = f"With {found.name}, they would cost {money(s)}"
    if not found.pays:
        return f"{text}, which saves nothing."
    back = f", paid back after {_back(spec, found)}" if found.break_even_requests else ""
    return f"{text}: {percent(1 - s / t)} less{back}."


def _back(spec: EconomicsSpec, found: Scenario) -> str:
    requests = plural(found.break_even_requests, "request")
    if found.break_even_days is None:
        return requests
    return f"{requests}, {_days(found.break_even_days)} at {spec.requests_per_day:,} a day"


def _days(days: float) -> str:
    return "less than a day" if days < 1 else plural(math.ceil(days), "day")


def _unknown(spec: EconomicsSpec, teacher: Evaluation, student: Evaluation, rate: Rate | None,
             paid: Paid) -> list[str]:
    said = []
    if teacher.cost is None:
        said.append(
            "What the teacher costs: its recording says no price. Name economics.teacher.model, or its "
            "price, and economics.teacher.tokens where the recording has none." if teacher.replayed else
            "What the teacher costs: the price table does not know it. Give teacher.price, in US dollars per "
            "million tokens.")
    if rate is None:
        said.append("What the student costs: " + (
            "your machine has no price. Give economics.hardware_usd_per_hour." if student.throughput else
            "its answers say no price. Give economics.student_price, in US dollars per million tokens, or "
            "economics.endpoint_usd_per_minute."))
    if spec.requests_per_day is None:
        said.append("How many requests come on a day, and so break-even in days: give "
                    "economics.requests_per_day.")
    if paid.usd is None:
        said.append(f"What the student cost to get: {paid.source}. Give economics.training_usd.")
    return said


def _from_recipe(spec: EconomicsSpec, teacher: Evaluation, student: Evaluation, fixed: Rate | None,
                 ) -> list[str]:
    """What the recipe says and nobody measured, in a few words each."""
    about, said = spec.teacher, []
    if spec.requests_per_day is not None:
        said.append(f"{spec.requests_per_day:,} requests a day")
    if teacher.cost and teacher.replayed and (about.model or about.price):
        said.append("the teacher's price" if about.price else f"a teacher at the price of {about.model}")
    if teacher.cost and "as the recipe says" in teacher.cost.source:
        said.append(f"{about.tokens.input:,} tokens in and {about.tokens.output:,} out")
    if about.batch:
        said.append("a teacher that is asked in batches")
    if spec.student_price is not None:
        said.append("the student's price")
    if spec.endpoint_usd_per_minute is not None:
        said.append(f"an endpoint at {money(spec.endpoint_usd_per_minute)} a minute")
    elif spec.hardware_usd_per_hour is not None and student.throughput:
        said.append(f"a machine at {money(spec.hardware_usd_per_hour)} an hour"
                    f"{' round the clock' if fixed else ''}")
    if spec.training_usd is not None:
        said.append("what the student cost to get")
    return said


def _assumed(spec: EconomicsSpec, teacher: Evaluation, student: Evaluation) -> list[str]:
    said = [f"Teacher: {teacher.cost.source}."] if teacher.cost else []
    if student.cost:
        said.append(f"Student: {student.cost.source}.")
    found = server(spec, student.role, student.throughput, student.latency, student.usd_per_hour)
    if found and not found.always_on and student.throughput:
        said.append("The student's machine is paid only while it answers, always as busy as it was "
                    f"measured ({plural(student.throughput.at_once, 'request')} at once).")
    if found and found.hosted and found.per_second is None:
        said.append("One endpoint is taken to answer any number of requests, because how many it can answer "
                    "was not measured.")
    if teacher.replayed:
        said.append("What the recording cost when it was made is not counted.")
    return said
