"""The page of several runs: side by side, in words where a figure is unknown."""

import re

import pytest
from support import metrics as made

from distillctl.report.compare import comparison_page, headline, write_comparison
from distillctl.report.markdown import markdown_comparison

RUNS = {"routing/local-qwen3-0.6b": made.viable(),
        "routing/together-qwen3": made.classification(
            student=.95, word="marginal", settled=False, needed=900),
        "routing/local-smollm2-135m": made.not_ready()}


def text_of(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_each_run_has_its_figures_and_its_verdict_in_words():
    text = text_of(comparison_page(made.side_by_side(RUNS)))
    for said in ("1 of 3 students is viable", "1 · routing/local-qwen3-0.6b", "viable settled",
                 "marginal not settled", "97.2 % [94.3, 98.6]", "the best figure is optimistic",
                 "0.00012 by Holm", "C · linear (baseline)"):
        assert said in text


def test_accuracy_is_drawn_against_latency_and_cost_where_they_are_known():
    page = comparison_page(made.side_by_side(RUNS))
    assert 'id="by-latency-title"' in page and 'id="by-cost-title"' in page


def test_unknown_costs_are_said_and_not_drawn():
    metrics = made.viable()
    without = metrics.model_copy(update={
        "evaluations": [e.model_copy(update={"cost": None}) for e in metrics.evaluations]})
    page = comparison_page(made.side_by_side({"routing/a": without}))
    assert 'id="by-cost-title"' not in page
    assert "Cost of 1,000 requests is known of fewer than two entrants" in text_of(page)
    assert "$" not in text_of(page)


def test_a_replayed_teacher_is_stamped_here_too():
    text = text_of(comparison_page(made.side_by_side({"routing/a": made.replayed()})))
    assert "Replayed teacher: its answers come from a recording" in text


@pytest.mark.parametrize(("verdicts", "said"), [
    ([("not ready", True)], "No student is viable"),
    ([("viable", False), ("marginal", True)], "1 of 2 students is viable, not settled"),
    ([("viable", True), ("viable", False)], "2 of 2 students are viable, 1 of them not settled"),
])
def test_the_headline_promises_nothing_that_is_not_settled(verdicts, said):
    runs = made.side_by_side({
        f"r/{i}": made.classification(student=.9, word=word, settled=settled)
        for i, (word, settled) in enumerate(verdicts)}).runs
    assert headline(runs) == said


def test_the_page_is_written(tmp_path):
    write_comparison(made.side_by_side(RUNS), tmp_path / "page.html")
    assert "1 of 3 students is viable" in (tmp_path / "page.html").read_text()


def test_runs_that_are_ranked_on_dev_name_the_sweet_spot_and_how_they_differ():
    page = comparison_page(made.side_by_side(RUNS, on_dev=True))
    for said in ("Sweet spot: routing/local-qwen3-0.6b", "best student on dev comes first",
                 "learning_rate 0.001", "98.0 %", "Paid back after", "The ringed one is the sweet spot"):
        assert said in text_of(page)
    assert "Accuracy against latency against cost" in page and ", the sweet spot" in page


def test_markdown_says_the_same():
    text = markdown_comparison(made.side_by_side(RUNS, on_dev=True))
    for said in ("## 1 of 3 students is viable", "Sweet spot: routing/local-qwen3-0.6b",
                 "learning&#95;rate 0.001", "97.2 %", "best student on dev first"):
        assert said in text
