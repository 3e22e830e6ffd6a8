"""The report in Markdown, for a pull request: verdict, figures, and the first errors of each kind.

What models and data say stands in code fences longer than any run of backticks in it, or escaped in a
table cell; so it cannot become markup, a link, an image or a mention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from distillctl.evaluate.comparison_results import ComparisonTable
from distillctl.evaluate.results import Evaluation, Metrics
from distillctl.report import facts, ledger_view, words
from distillctl.report.compare import headline
from distillctl.report.sanitize import cut, visible

MOST_ERRORS = 3  # shown of each kind
MOST_SUSPECTS = 20
MOST_TEXT = 600
MOST_LINE = 1000
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>|~&$@#!]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_NAMED = re.compile("&#64;|&#35;")
# What begins a list, a rule or an underlined heading.
_START = re.compile(r"^(?:[-+](?=\s|$)|\d+[.)](?=\s|$)|[-=](?=[-=]*$))")
_BACKTICKS = re.compile(r"`+")


def markdown_report(metrics: Metrics, run_name: str, conclusions: Sequence[str] = ()) -> str:
    """The whole text, ending in a newline. conclusions: what the variants of the student say."""
    verdict = metrics.verdict
    settled = "" if verdict.settled else ", not settled"
    parts = [f"## {verdict.word.capitalize()}{settled}: {plain(run_name)}", f"**{plain(verdict.sentence)}**",
             words.settled(verdict, facts.student_of(metrics).n)]
    parts += [f"> {line}" for line in _stamps(metrics)]
    parts += [_comparison(metrics), _listed("What the verdict rests on", verdict.reasons),
              _listed("What to try next", verdict.next_steps),
              _listed("The same student on other rows and with other seeds", conclusions),
              _secondary(metrics), _parts(metrics), _judge(metrics), _cascade(metrics), _slices(metrics),
              _economics(metrics), _listed("Notes", metrics.notes), _errors(metrics), _suspects(metrics)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_comparison(table: ComparisonTable) -> str:
    """Runs side by side in Markdown, ending in a newline."""
    measure = "Accuracy" if table.gold else "Agreement"
    columns = ["Run", "Verdict", "On dev", measure, "Drop", "Median latency", "Speed-up",
               "Per 1,000 requests", "Paid back after"]
    rows = [[
        f"{one.run} ({words.settings_text(one.settings) or one.student.model})",
        one.verdict.word + ("" if one.verdict.settled else ", not settled"), *_figures(one.student),
        f"{words.points(one.drop.value)} {words.points_range(one.drop)}", facts.median(one.student).value,
        words.times(one.speedup), facts.cost(one.student).value, facts.paid_back(one)] for one in table.runs]
    no = words.NOT_APPLICABLE
    rows += [[words.title_of(e), no, *_figures(e), no, facts.median(e).value, no, facts.cost(e).value, no]
             for e in table.references]
    spot = f"**{plain(table.sweet_spot.sentence)}**" if table.sweet_spot else ""
    parts = [f"## {headline(table.runs)}", spot,
             f"The same {words.plural(table.n, 'test item')}; the best student on {table.ranked_on} first.",
             _table(columns, rows), _listed("Notes", table.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figures(e: Evaluation) -> list[str]:
    return [words.percent(e.dev.share.value) if e.dev else words.UNKNOWN,
            f"{words.percent(e.accuracy.share.value)} {words.percent_range(e.accuracy.share)}"]


def plain(text: str) -> str:
    """Text on one line in which nothing is Markdown, HTML, a link, a mention or the number of an issue."""
    line = " ".join(visible(cut(text, MOST_LINE)).split())
    line = _SPECIAL.sub(lambda match: f"&#{ord(match.group())};", line)
    # A mention and an issue are found in the rendered text: a word joiner keeps them from being one.
    line = _NAMED.sub(lambda match: f"{match.group()}&#8288;", line)
    return _START.sub(lambda match: f"{match.group()[:-1]}&#{ord(match.group()[-1])};", line)


def fenced(text: str) -> str:
    """Text as it is, in a fence longer than any run of backticks in it."""
    text = visible(cut(text, MOST_TEXT))
    fence = "`" * max(3, 1 + max((len(run) for run in _BACKTICKS.findall(text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _stamps(metrics: Metrics) -> list[str]:
    found = [words.replay_stamp(metrics.evaluations)]
    if metrics.verdict.on_quality_alone:
        found.append("Judged on quality alone: the speed-up is unknown.")
    if not metrics.gold:
        found.append("No gold answers: “right” means “as the teacher said”.")
    return [stamp for stamp in found if stamp]


def _comparison(metrics: Metrics) -> str:
    shown = facts.entrants(metrics)
    rows = [["", *(plain(cut(words.title_of(e), 120)) for e in shown)], ["---"] * (len(shown) + 1)]
    for row in facts.comparison_rows(metrics):
        rows.append([row.name, *(
            plain(cut(fact.value, 120)) + (f"<br>{plain(cut(fact.detail, 120))}" if fact.detail else "")
            for fact in row.facts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cascade(metrics: Metrics) -> str:
    line = words.cascade_line(metrics)
    if line is None:
        return ""
    pairs = [[name, value] for name, value in facts.cascade_pairs(metrics)]
    table = f"\n\n{_table(['', ''], pairs)}" if pairs else ""
    return f"### For a part of the traffic\n\n{plain(line)}{table}"


def _secondary(metrics: Metrics) -> str:
    columns, rows = facts.secondary_table(metrics)
    return f"### Other metrics\n\n{_table(columns, rows)}" if rows else ""


def _parts(metrics: Metrics) -> str:
    if not facts.student_of(metrics).parts:
        return ""
    tables = [_table(*facts.part_table(metrics))]
    columns, rows = facts.part_cell_table(metrics)
    if rows:
        tables.append(_table(columns, rows))
    return "\n\n".join(["### By field or check", *tables])


def _judge(metrics: Metrics) -> str:
    if metrics.judge is None:
        return ""
    pairs = [list(pair) for pair in facts.judge_pairs(metrics)]
    return f"### What a judge prefers\n\n{plain(metrics.judge.sentence)}\n\n{_table(['', ''], pairs)}"


def _slices(metrics: Metrics) -> str:
    return f"### By slice\n\n{_table(*facts.slice_table(metrics))}" if metrics.slices else ""


def _economics(metrics: Metrics) -> str:
    found = metrics.economics
    if found is None:
        return ""
    parts = ["### What it would save", plain(found.sentence)]
    if assumed := words.assumed_by_recipe(found):
        parts.append(plain(assumed))
    if found.curve:
        parts.append(_table(*facts.scenario_table(found)))
    for title, lines in (("Not known:", found.unknown), ("Taken for granted:", found.assumed)):
        if lines:
            parts.append(title)
            parts.append("\n".join(f"- {plain(line)}" for line in lines))
    return "\n\n".join(parts)


def _suspects(metrics: Metrics) -> str:
    return _listed("Expected answers that may be wrong", metrics.label_suspects[:MOST_SUSPECTS])


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [[plain(cut(cell, 120)) for cell in row] for row in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(title: str, lines: Iterable[str]) -> str:
    listed = "\n".join(f"- {plain(line)}" for line in lines)
    return f"### {title}\n\n{listed}" if listed else ""


def _errors(metrics: Metrics) -> str:
    comparison = facts.comparison_of(metrics, metrics.verdict.student)
    if comparison is None or not comparison.items:
        return ""
    frame = ledger_view.shared_text(comparison.items)
    parts = ["### Where it fails"]
    for group in ledger_view.groups(comparison, frame, metrics.gold):
        parts.append(f"<details><summary>{group.title} ({words.plural(group.total, 'item')})</summary>")
        for item in group.items[:MOST_ERRORS]:
            parts.append(plain(cut(item.id, 120)))
            parts.append(fenced(item.prompt))
            parts += [f"{said.who}:\n\n{fenced(said.text)}" for said in item.said]
        if group.total > MOST_ERRORS:
            parts.append(f"and {group.total - MOST_ERRORS:,} more, in metrics.json")
        parts.append("</details>")
    return "\n\n".join(parts)
