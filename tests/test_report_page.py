"""The run's page: what it says, in which order, and what it leaves out."""

import re

import pytest
from support import metrics as made

from distillctl.report.html import ReportInput, report_page, write_report

RECIPE = "name: routing\ntask:\n  prompt: |\n    Is {{ question }} <code> & docs?\n"


def text_of(page: str) -> str:
    """What a reader sees, roughly: no style, no tags, one space between words."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def page_of(metrics, **more) -> str:
    return report_page(ReportInput(metrics, "routing/local-smollm2", RECIPE, **more))


def test_the_verdict_comes_before_everything_else():
    page = page_of(made.not_ready())
    order = [page.index(part) for part in (
        'id="verdict"', 'class="sentence"', 'class="tiles"', 'id="why"', 'id="comparison"', 'id="labels"',
        'id="calibration"', 'id="errors"', 'id="training"', 'id="provenance"')]
    assert order == sorted(order)
    assert page.index("Not ready</h1>") < page.index("<main>")


@pytest.mark.parametrize(("metrics", "heading", "said"), [
    (made.viable(), "Viable", "Settled: the 95 % intervals leave no other verdict open."),
    (made.replayed(), "Marginal · not settled", "about 1,200 test items in all would settle it"),
    (made.text(), "Not ready · not settled", "Not settled by this test set of 44 items."),
], ids=["settled", "needs-items", "no-number-would"])
def test_an_open_verdict_is_never_shown_as_certain(metrics, heading, said):
    page = page_of(metrics)
    shown = re.search(r"<h1.*?</h1>", page, re.DOTALL).group()
    assert text_of(shown) == heading
    assert said in text_of(page)


def test_a_replayed_teacher_is_stamped_and_its_figures_are_unknown():
    text = text_of(page_of(made.replayed()))
    assert "Replayed teacher: its answers come from a recording" in text
    assert "Its latency and cost are unknown." in text
    assert re.search(r"Latency, median unknown 41 ms", text)
    assert "Judged on quality alone" in text
    assert "$0 " not in text


def test_a_live_teacher_has_no_stamp():
    assert "Replayed" not in text_of(page_of(made.not_ready()))


def test_without_gold_answers_nothing_is_called_accuracy():
    text = text_of(page_of(made.text()))
    assert "No gold answers: “right” means “as the teacher said”." in text
    assert "Agreement with the teacher" in text
    assert "Student: accuracy" not in text


def test_a_long_ledger_says_how_much_more_there_is_and_where():
    metrics = made.classification(student=.2, n=600)
    there = metrics.comparisons[-1].compression
    assert there > 400
    page = page_of(metrics)
    assert page.count('<article class="item">') < 400
    assert f"and {there - 200} items more of this kind, all in metrics.json" in page


def test_only_what_varies_of_the_prompts_stands_with_each_error():
    page = page_of(made.not_ready())
    assert page.count("Classify this question into one of four retrieval modes.") == 1
    assert page.count("… the input …") == 1


def test_surest_mistakes_come_first():
    shown = re.findall(r"confidence (\d+\.\d) %", page_of(made.not_ready()).split("Corrected")[0])
    assert len(shown) > 20
    assert [float(s) for s in shown] == sorted((float(s) for s in shown), reverse=True)


def test_json_answers_are_shown_field_by_field_with_their_scores():
    text = text_of(page_of(made.structured()))
    assert "citations: [1, 2] answerable: true confidence: low" in text
    assert "citations 0.0 %" in text


def test_the_recipe_stands_there_verbatim_and_escaped():
    page = page_of(made.viable())
    assert "Is {{ question }} &lt;code&gt; &amp; docs?" in page


def test_artifacts_of_any_shape_are_shown():
    text = text_of(page_of(
        made.viable(),
        audit={"format": 1, "rows": 999, "splits": {"train": {"rows": 600, "labels": {"code": 1}},
                                                    "test": {"rows": 250}}, "odd": [[1, [2]], {"a": None}]},
        selection={"kept": 588, "dropped": [{"reason": "wrong", "count": 12, "ids": ["a"] * 300}]},
        stability={"measured": True, "agreement": None}, spend={"usd": 0.42}))
    for said in ("Rows 999", "train 600", "Kept 588", "wrong 12", "Measured yes", "Agreement unknown",
                 "0.42"):
        assert said in text
    assert "Format" not in text


def test_a_stability_that_was_not_measured_is_one_sentence():
    text = text_of(page_of(made.viable(), stability={"measured": False, "agreement": None, "items": None}))
    assert "Not measured: it was not asked the same thing twice." in text
    assert "Agreement unknown" not in text


def test_a_page_without_any_artifact_is_whole():
    text = text_of(page_of(made.viable()))
    assert "No training curve was recorded." in text
    assert "Data audit" not in text


def test_the_training_curve_is_drawn_from_the_numbers_there_are():
    rows = [{"time": 1.0, "message": "loaded"}, {"time": 2.0, "message": "s", "step": 1, "loss": 2.0},
            {"time": 3.0, "step": 2, "loss": 1.0, "eval_loss": 1.5},
            {"time": 4.0, "step": 4, "loss": float("nan")},
            {"time": 5.0, "step": 4, "eval_loss": 1.2, "eval_score": None}]
    page = page_of(made.viable(), training=rows)
    assert 'id="loss-title"' in page
    assert "training loss from 2 to 1 over 2 steps; loss on dev from 1.5 to 1.2 over 4 steps" in page
    assert 'id="score-title"' not in page


def test_ids_are_unique_and_every_reference_has_its_target():
    rows = [{"step": step, "loss": 1 / step, "eval_score": .5} for step in (1, 2, 3)]
    page = page_of(made.not_ready(), training=rows)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 20
    wanted = set(re.findall(r'url\(#([^)]+)\)', page)) | set(re.findall(r'href="#([^"]+)"', page))
    wanted |= {name for names in re.findall(r'aria-labelledby="([^"]+)"', page) for name in names.split()}
    assert wanted <= set(ids)


def test_nothing_is_loaded_and_nothing_runs():
    page = page_of(made.not_ready())
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"<script|<img|<link|<iframe|<object|@import|javascript:|\bsrc=|\bon\w+=", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_equal_inputs_give_equal_pages(tmp_path):
    inputs = ReportInput(made.not_ready(), "routing/x", RECIPE, training=[{"step": 1, "loss": 2}] * 2)
    write_report(inputs, tmp_path / "a.html")
    write_report(inputs, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_many_labels_are_drawn_by_the_weakest():
    labels = [f"label-{i:03d}" for i in range(77)]
    page = page_of(made.classification(student=.8, n=770, labels=labels))
    assert "the 25 weakest of 77 are shown" in page


@pytest.mark.parametrize("change", [
    {"labels": [], "confusion": None, "macro_f1": None}, {"calibration": None}, {"latency": None}],
    ids=["no-labels", "no-probabilities", "no-latency"])
def test_what_was_not_measured_is_left_out(change):
    metrics = made.viable()
    page = page_of(metrics.model_copy(update={
        "evaluations": [e.model_copy(update=change) for e in metrics.evaluations]}))
    assert "Viable</h1>" in page
