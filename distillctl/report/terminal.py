"""Results on a terminal, by rich. Everything shown is cleaned text, never markup.

Colour and width are the console's: rich leaves colour out where NO_COLOR is set or nobody looks. Tables
put the entrants side by side and a figure's interval under it, so that 60 columns are enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from distillctl.evaluate.comparison_results import ComparisonTable
from distillctl.evaluate.results import Evaluation, Interval, Metrics, Verdict
from distillctl.report import facts, words
from distillctl.report.sanitize import clean as clean
from distillctl.report.sanitize import cut

if TYPE_CHECKING:
    from distillctl.plan import Plan, PlanRow
    from distillctl.sweep import SweepPlan

MOST_TEXT = 2000  # characters of one text
MOST_NAME = 120  # of a name in a table
_STYLES = {"viable": "green", "marginal": "yellow", "not ready": "red"}
_MARKS = {"viable": "✓", "marginal": "≈", "not ready": "✗"}


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; None is shown as unknown, a column of numbers is set to the right."""
    listed = [list(row) for row in rows]
    made = _table(title)
    for index, name in enumerate(columns):
        cells = [row[index] for row in listed]
        numeric = bool(cells) and all(
            isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)
        made.add_column(_text(name), justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        made.add_row(*(_text(words.number(cell), most=MOST_TEXT) for cell in row))
    return made


def comparison_table(metrics: Metrics) -> RenderableType:
    """Teacher, base model, baseline and student side by side, with the stamp of a replayed teacher."""
    shown = facts.entrants(metrics)
    made = _table(f"Measured on the same {words.plural(facts.student_of(metrics).n, 'test item')}, "
                  "with 95 % intervals")
    made.add_column("", overflow="fold")
    for e in shown:
        name, role = words.name_and_role(e)
        heading = _text(name, "bold" if e.name == metrics.verdict.student else "")
        made.add_column(_under(heading, role) if role else heading, overflow="fold")
    for row in facts.comparison_rows(metrics):
        made.add_row(_text(row.name), *(_fact(fact) for fact in row.facts))
    shown_too: list[RenderableType] = []
    if (secondary := facts.secondary_table(metrics))[1]:
        shown_too.append(_plain("Other metrics; the verdict rests on the first row above", *secondary))
    if facts.student_of(metrics).parts:
        shown_too.append(_plain("By field or check", *facts.part_table(metrics)))
    if metrics.slices:
        shown_too.append(_slices(metrics))
    if metrics.judge:
        style = "" if metrics.judge.believed else "yellow"
        shown_too.append(_text(metrics.judge.sentence, style, MOST_TEXT))
    if stamp := words.replay_stamp(metrics.evaluations):
        shown_too.append(Text(stamp, "yellow"))
    return Group(made, *shown_too) if shown_too else made


def _plain(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    made = _table(title)
    for name in columns:
        made.add_column(_text(name), overflow="fold")
    for row in rows:
        made.add_row(*(_text(cell) for cell in row))
    return made


def _slices(metrics: Metrics) -> Table:
    columns, rows = facts.slice_table(metrics)
    made = _table("By slice")
    for name in columns:
        made.add_column(name, overflow="fold")
    for one, row in zip(metrics.slices, rows, strict=True):
        style = "yellow" if one.behind else ""
        made.add_row(*(_text(cell, style) for cell in row))
    return made


def verdict_panel(metrics: Metrics) -> RenderableType:
    """The verdict in a frame: the word, the sentence, how certain it is, and what to try next."""
    verdict = metrics.verdict
    lines = [_text(verdict.sentence, "bold", MOST_TEXT),
             Text(words.settled(verdict, facts.student_of(metrics).n))]
    if verdict.on_quality_alone:
        lines.append(Text("Judged on quality alone: the speed-up is unknown.", "yellow"))
    if line := words.cascade_line(metrics):
        lines.append(_text(line, most=MOST_TEXT))
    if metrics.economics:
        lines.append(_text(metrics.economics.sentence, most=MOST_TEXT))
        if assumed := words.assumed_by_recipe(metrics.economics):
            lines.append(_text(assumed, "dim", MOST_TEXT))
    if metrics.label_suspects:
        lines.append(_text(
            f"Look at {words.plural(len(metrics.label_suspects), 'expected answer')} that may be wrong: the "
            "student is sure of another one and the teacher gives the same; the report lists them."))
    if verdict.next_steps:
        lines.append(Text("Next:"))
        lines += [_text(f"{number}. {step}", most=MOST_TEXT)
                  for number, step in enumerate(verdict.next_steps, 1)]
    return Panel(Group(*lines), title=_word(verdict), title_align="left",
                 border_style=_STYLES[verdict.word], padding=(0, 1))


def runs_table(compared: ComparisonTable) -> RenderableType:
    """Runs side by side, then whom they are measured against."""
    made = _table(f"{words.plural(len(compared.runs), 'run')} on the same "
                  f"{words.plural(compared.n, 'test item')}, the best student on {compared.ranked_on} first")
    for name in ("Run", "Verdict", "Accuracy" if compared.gold else "Agreement", "Drop", "Median, cost"):
        made.add_column(name, overflow="fold")
    for one in compared.runs:
        back = f"paid back: {facts.paid_back(one)}" if one.economics else ""
        how = words.settings_text(one.settings) or one.student.model
        made.add_row(
            _under(_text(one.run), how), _word(one.verdict, "\n"),
            _accuracy(one.student, compared),
            _fact(facts.Fact(words.points(one.drop.value), words.points_range(one.drop))),
            _speed_and_cost(one.student, one.speedup, back))
    for e in compared.references:
        made.add_row(_under(_text(words.title_of(e)), e.model), "", _accuracy(e, compared), "",
                     _speed_and_cost(e, None))
    shown: list[RenderableType] = [made]
    if stamp := words.replay_stamp(compared.references):
        shown.append(Text(stamp, "yellow"))
    if compared.sweet_spot:
        shown.append(_text(compared.sweet_spot.sentence, "bold", MOST_TEXT))
    shown += [_text(note, most=MOST_TEXT) for note in compared.notes]
    return Group(*shown)


def _accuracy(e: Evaluation, compared: ComparisonTable) -> Text:
    shown = _fact(facts.accuracy(e))
    dev = e.dev if compared.ranked_on == "dev" else None
    return _under(shown, f"dev {words.percent(dev.share.value)}") if dev else shown


def _speed_and_cost(e: Evaluation, speedup: Interval | None, back: str = "") -> Text:
    median = words.seconds(e.latency.p50.value if e.latency else None)
    cost = words.money(e.cost.usd_per_1000 if e.cost else None)
    shown = _under(_text(f"{median}, {words.times(speedup)}" if speedup else median), cost)
    return _under(shown, back) if back else shown


def plan_table(plan: Plan) -> RenderableType:
    """What a run would do, stage by stage; what it costs at most, and where data goes."""
    made = _table(f"Plan of {plan.run}")
    for name, justify in (("Stage", "left"), ("Action", "left"), ("Why", "left"), ("Calls", "right"),
                          ("At most", "right")):
        made.add_column(name, justify=justify, overflow="fold")
    for row in plan.rows:
        made.add_row(_text(row.stage), Text(row.action, "green" if row.action == "reuse" else "bold"),
                     _text(row.why, most=MOST_TEXT), "" if row.calls is None else f"{row.calls:,}",
                     _text(_price(row)))
    lines = [_text(f"{row.stage}: {note}", most=MOST_TEXT) for row in plan.rows for note in row.notes]
    return Group(made, *lines, *_totals(plan))


def _totals(plan: Plan) -> list[Text]:
    """What a plan costs, where data goes, and what to know."""
    cost = words.UNKNOWN if plan.usd is None else f"up to {words.money(plan.usd[1])}"
    where = ", ".join(plan.sends_to) or "nowhere, it stays on this machine"
    return [_text(f"Cost: {cost}; the budget is {words.money(plan.budget_usd)}."),
            _text(f"Data goes to: {where}", most=MOST_TEXT),
            *(_text(f"warning: {warning}", "yellow", MOST_TEXT) for warning in plan.warnings)]


def sweep_plan_table(made: SweepPlan) -> RenderableType:
    """What a sweep would do, student by student, and what it comes to."""
    from distillctl.sweep import trainings

    total = made.total
    shown = _table(f"Plan of {total.run}")
    for name, justify in (("Student", "left"), ("Run", "left"), ("Trainings", "right"), ("Stages", "left"),
                          ("At most", "right")):
        shown.add_column(name, justify=justify, overflow="fold")
    for settings, plan in made.cells:
        counts = {word: sum(row.action == word for row in plan.rows) for word in ("run", "reuse", "share")}
        stages = ", ".join(f"{count} to {word}" for word, count in counts.items() if count)
        shown.add_row(_text(words.settings_text(settings)), _text(plan.run), str(trainings(plan)), stages,
                      words.UNKNOWN if plan.usd is None else words.money(plan.usd[1]))
    notes = dict.fromkeys(f"{row.stage}: {note}" for _, plan in made.cells for row in plan.rows
                          for note in row.notes)
    lines = [_text(note, most=MOST_TEXT) for note in notes]
    return Group(shown, *lines, _text(f"{words.plural(made.trainings, 'training')} in all, one collection."),
                 *_totals(total))


def _price(row: PlanRow) -> str:
    """Only asking teacher or judge and training may cost what is not known; other stages are free."""
    if row.usd is not None:
        return words.money(row.usd)
    may_cost = row.stage in ("teacher", "judge") or row.stage.startswith("train-")
    return words.UNKNOWN if may_cost and row.action == "run" else ""


def _table(title: str) -> Table:
    return Table(title=_text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                 header_style="", show_edge=False)


def _text(text: str, style: str = "", most: int = MOST_NAME) -> Text:
    return Text(cut(clean(text), most), style, overflow="fold")


def _under(text: Text, detail: str) -> Text:
    """`text` with `detail` on a line of its own."""
    return Text("\n").join([text, _text(detail, "dim")])


def _fact(fact: facts.Fact) -> Text:
    value = _text(fact.value, "dim italic" if fact.value == words.UNKNOWN else "")
    return _under(value, fact.detail) if fact.detail else value


def _word(verdict: Verdict, between: str = ", ") -> Text:
    settled = "settled" if verdict.settled else "not settled"
    return Text(f"{_MARKS[verdict.word]} {verdict.word}{between}{settled}", f"bold {_STYLES[verdict.word]}")
