"""What a decision needs beside the verdict, in every form of the report: the cascade, slices, economics and
answers that may be wrong."""

from __future__ import annotations

import html
import io
import re

import pytest
from rich.console import Console
from support import metrics as made

from distillctl.report import plots, words
from distillctl.report.html import ReportInput, report_page
from distillctl.report.markdown import markdown_report
from distillctl.report.terminal import comparison_table, verdict_panel


def on_terminal(metrics) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison_table(metrics), verdict_panel(metrics))
    return console.export_text()


def on_page(metrics) -> str:
    page = report_page(ReportInput(metrics, "routing/x", "name: routing\n"))
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


def in_markdown(metrics) -> str:
    return markdown_report(metrics, "routing/x")


FORMS = pytest.mark.parametrize("shown", [on_terminal, on_page, in_markdown])


def flat(text: str) -> str:
    return " ".join(html.unescape(text).replace("│", " ").split())


@FORMS
def test_the_cascade_is_told_beside_the_verdict(shown):
    text = flat(shown(made.decided(made.not_ready())))
    assert "Alone: not ready. With a threshold of 0.9 the student answers" in text


@FORMS
def test_where_no_threshold_could_be_chosen_it_says_why(shown):
    none = made.not_ready().model_copy(update={"no_cascade": "No threshold can be chosen on 40 dev items."})
    assert "Alone: not ready. No threshold can be chosen on 40 dev items." in flat(shown(none))


@pytest.mark.parametrize("shown", [on_page, in_markdown])
def test_a_threshold_says_what_dev_showed_of_it(shown):
    text = flat(shown(made.decided(made.viable())))
    assert re.search(r"0.9, chosen on 250 dev items, not on these: there the whole is at most \d.\d points "
                     r"below the teacher \(95 % confidence\)", text)


def test_the_page_shows_the_walk_and_what_other_thresholds_would_give():
    text = flat(on_page(made.decided(made.viable())))
    walk = text[text.index("How the threshold was chosen"):text.index("The curve in numbers")]
    assert len(re.findall(r"0\.\d{3} \d+\.\d %", walk)) == 12
    assert "teacher alone 0.0 %" in text


@FORMS
def test_a_structured_task_shows_its_scores_and_each_field_with_how_it_is_scored(shown):
    text = flat(shown(made.structured()))
    for said in ("Fits the schema", "Whole object equal", "Field-F1", "citations (a list, order aside)"):
        assert said in text


@FORMS
def test_a_text_task_shows_its_likeness_and_each_check(shown):
    text = flat(shown(made.text())).replace("&#95;", "_")
    for said in ("Equal to the expected text", "ROUGE-L", "0.810", "chrF", "0.770", "must_not_include"):
        assert said in text


@FORMS
def test_the_metrics_beside_the_accuracy_have_a_drop_of_their_own(shown):
    text = flat(shown(made.viable())).replace(" | ", " ")
    table = text[text.index("Beside the accuracy Teacher Student Drop"):]
    assert re.search(r"Macro-F1 0\.\d+ 0\.\d+ \+\d\.\d points", table)


@pytest.mark.parametrize("shown", [on_page, in_markdown])
def test_every_field_has_its_errors_by_cell(shown):
    text = flat(shown(made.structured())).replace(" | ", " ")
    assert "Field or check Compression Inherited Both wrong, differently Corrected" in text
    assert "confidence 4 3 0 0" in text


@FORMS
def test_slices_are_a_table_in_which_the_weak_one_stands_out(shown):
    metrics = made.decided(made.viable())
    assert [one.behind for one in metrics.slices] == [False, True, None]
    text = flat(shown(metrics))
    for said in ("falls behind", "too few items to say", "no clear sign"):
        assert text.count(said) == 1


@FORMS
def test_what_it_would_save_is_told(shown):
    assert "If the student took over, 1,000 requests would cost $0.0021 instead of $0.94" in flat(
        shown(made.decided(made.viable())))


@FORMS
def test_what_the_recipe_assumes_is_told_apart(shown):
    said = "Assumed by the recipe: 50,000 requests a day, a machine at $0.18 an hour."
    assert said in flat(shown(made.decided(made.viable())))
    assert "Assumed by" not in shown(made.decided(made.replayed(), known=False))


@FORMS
def test_without_them_nothing_is_said_of_them(shown):
    text = shown(made.viable())
    for said in ("Alone:", "falls behind", "would cost", "may be wrong"):
        assert said not in text


@pytest.mark.parametrize("shown", [on_page, in_markdown])
def test_what_is_not_known_is_said_with_what_would_make_it_known(shown):
    text = flat(shown(made.decided(made.replayed(), known=False)))
    assert "economics.requests" in text
    assert "What the student would save is unknown" in text


@pytest.mark.parametrize("shown", [on_page, in_markdown])
def test_break_even_and_what_ifs_are_a_table(shown):
    text = flat(shown(made.decided(made.viable())))
    for said in ("the teacher at half its price", "the student at twice its price", "the cascade at 0.9"):
        assert said in text
    assert re.search(r"13,2\d\d requests \(less than a day\)", text)


def test_answers_that_may_be_wrong_are_listed_with_what_was_said():
    metrics = made.decided(made.not_ready())
    page = on_page(metrics)
    listed = page[page.index("Expected answers that may be wrong"):]
    assert all(id in listed for id in metrics.label_suspects)


class TestPlots:
    def test_the_curve_of_the_cascade_says_in_text_what_it_shows(self):
        metrics = made.decided(made.viable())
        svg = plots.cascade_plot(metrics.cascade, 0.98)
        assert f"At the threshold 0.9: {words.percent(metrics.cascade.answered.share.value)} answered" in svg
        assert "100.0 % answered by the student" in svg

    def test_a_student_without_probabilities_has_no_curve(self):
        found = made.decided(made.viable()).cascade
        assert plots.cascade_plot(found.model_copy(update={"curve": found.curve[:1]}), 1.0) is None

    def test_cost_against_volume_names_every_line(self):
        svg = plots.volume_plot(made.decided(made.viable()).economics)
        for name in ("teacher", "student", "cascade"):
            assert re.search(rf"{name} from \$[\d.,]+ at 500 requests a day to \$[\d.,]+ at 5,000,000", svg)

    def test_what_costs_nothing_is_not_on_a_log_axis(self):
        found = made.decided(made.viable()).economics
        free = [point.model_copy(update={"student_usd": 0.0}) for point in found.curve]
        svg = plots.volume_plot(found.model_copy(update={"curve": free}))
        assert "student from" not in svg and "teacher from" in svg

    def test_unknown_costs_draw_nothing(self):
        assert plots.volume_plot(made.decided(made.viable(), known=False).economics) is None
