"""Which answers become training rows, and the teacher's agreement with itself."""

from __future__ import annotations

import asyncio

import pytest
from support.chat import predictor_for

from distillctl.collect import CollectOptions
from distillctl.predictors.recorded import RecordedPredictor
from distillctl.recipe.models import ClassificationSpec, TextSpec
from distillctl.select import predictions_of, requests_of, select
from distillctl.stability import measure
from distillctl.store.ledger import Ledger
from distillctl.task import build_task
from distillctl.testing.chat_server import Asked, ChatServer, Reply
from distillctl.types import Answer, Example

TASK = build_task(ClassificationSpec(kind="classification", labels=["code", "docs"], prompt="Q: {{ q }}"))


def example(id: str, q: str | None = None, expected: str | None = None) -> Example:
    return Example(id, {"q": q or id}, expected, f"rows.jsonl:{id}")


def selection(*pairs: tuple[Example, Answer], task=TASK):
    examples = [pair[0] for pair in pairs]
    requests = requests_of(task, examples)
    return select(task, examples, predictions_of(task, requests, [pair[1] for pair in pairs]))


def test_a_kept_row_is_what_the_backends_train_on():
    chosen = selection((example("a", expected="docs"), Answer(" Docs. ")))
    assert chosen.rows == [{"id": "a", "messages": [{"role": "user", "content": "Q: a"}],
                            "completion": "docs", "source": "rows.jsonl:a"}]
    assert chosen.dropped == {}


@pytest.mark.parametrize(("answer", "reason"), [
    (Answer(None, "failed", error="rejected: too long"), "no answer"),
    (Answer("I cannot", "refusal"), "refused"),
    (Answer("docs", "length"), "cut off"),
    (Answer(None, "empty"), "empty"),
    (Answer("perhaps docs"), "unreadable"),
    (Answer("code"), "wrong")])
def test_what_is_dropped_has_a_reason(answer, reason):
    chosen = selection((example("a", expected="docs"), answer),
                       (example("b", expected="docs"), Answer("docs")))
    assert chosen.dropped == {reason: ["a"]}
    assert [row["id"] for row in chosen.rows] == ["b"]


def test_without_gold_what_is_readable_is_kept():
    assert len(selection((example("a"), Answer("code"))).rows) == 1


def test_equal_prompts_with_different_answers_are_both_dropped():
    chosen = selection((example("a", "same"), Answer("code")), (example("b", "other"), Answer("docs")),
                       (example("c", "same"), Answer("docs")))
    assert chosen.dropped == {"inconsistent": ["a", "c"]}
    assert [row["id"] for row in chosen.rows] == ["b"]


def test_equal_prompts_with_equal_answers_are_kept():
    chosen = selection((example("a", "same"), Answer("code")), (example("b", "same"), Answer("CODE")))
    assert [row["completion"] for row in chosen.rows] == ["code", "code"]


def test_a_wrong_answer_does_not_drop_the_right_one_to_the_same_prompt():
    chosen = selection((example("a", "same", "docs"), Answer("code")),
                       (example("b", "same", "docs"), Answer("docs")))
    assert chosen.dropped == {"wrong": ["a"]}
    assert [row["id"] for row in chosen.rows] == ["b"]


def test_the_account_adds_up():
    chosen = selection((example("a", expected="docs"), Answer("docs")), (example("b"), Answer(None, "empty")),
                       (example("c", expected="docs"), Answer("code")))
    account = chosen.as_json()
    assert (account["examples"], account["kept"], account["gold"]) == (3, 1, 2)
    assert [(part["reason"], part["count"], part["ids"]) for part in account["dropped"]] == [
        ("empty", 1, ["b"]), ("wrong", 1, ["c"])]
    assert chosen.summary() == "1 of 3 answers become training rows; dropped: 1 empty, 1 wrong"


def test_an_unreadable_answer_says_why():
    request, = requests_of(TASK, [example("a")])
    failed, unread, good = predictions_of(TASK, [request] * 3, [
        Answer(None, "failed", error="transient: HTTP 500"), Answer("perhaps"), Answer("docs")])
    assert (failed.value, failed.problem) == (None, "transient: HTTP 500")
    assert (unread.value, unread.problem) == (None, "not one of the labels")
    assert (good.value, good.problem) == ("docs", None)


def test_predictions_of_other_examples_are_refused():
    task = build_task(TextSpec(kind="text", prompt="{{ q }}"))
    examples = [example("a"), example("b")]
    predictions = predictions_of(task, requests_of(task, examples), [Answer("x"), Answer("y")])
    with pytest.raises(ValueError, match="'a' is of 'b'"):
        select(task, examples, predictions[::-1])


# --- stability ---

def measured(folder, script, count=10, **options):
    examples = [example(f"row-{n}") for n in range(count)]
    with ChatServer(script) as server:
        async def go():
            predictor = predictor_for(server)
            with Ledger(folder / "ledger.db") as ledger:
                found = await measure(
                    predictor, TASK, requests_of(TASK, examples), min_agreement=0.9, ledger=ledger, run="run",
                    kind="teacher", paid=False, options=CollectOptions(concurrency=4), **options)
            await predictor.aclose()
            return found

        return asyncio.run(go()), server


def test_a_teacher_that_agrees_with_itself(tmp_path):
    found, server = measured(tmp_path, lambda asked: Reply("docs"), items=6, samples=3)
    assert (found.items, found.samples, found.agreed, found.unanimous, found.agreement) == (6, 3, 6, 1.0, 1.0)
    assert found.enough and found.low < 1.0 and found.high == pytest.approx(1.0)
    assert len(server.asked) == 18


def test_a_teacher_that_disagrees_with_itself_is_shown_with_the_prompts(tmp_path):
    def script(asked: Asked) -> Reply:
        return Reply("code" if asked.prompt == "Q: row-2" and asked.nth == 1 else "docs")

    found, _ = measured(tmp_path, script, items=10, samples=3)
    assert (found.agreed, found.unanimous, found.enough) == (9, 0.9, True)
    assert found.agreement == pytest.approx((9 + 1 / 3) / 10)
    (shown,) = found.disagreements
    assert shown["id"] == "row-2" and sorted(shown["answers"]) == ["code", "docs", "docs"]


def test_unreadable_answers_agree_with_nothing(tmp_path):
    found, _ = measured(tmp_path, lambda asked: Reply("who knows"), items=4, samples=2)
    assert (found.agreed, found.agreement, found.enough) == (0, 0.0, False)


def test_fewer_prompts_than_wanted_are_all_asked(tmp_path):
    found, server = measured(tmp_path, lambda asked: Reply("docs"), count=3, items=50, samples=2)
    assert (found.items, len(server.asked)) == (3, 6)


def test_the_same_prompts_are_chosen_again(tmp_path):
    first, _ = measured(tmp_path / "a", lambda asked: Reply("x"), count=30, items=5, samples=2)
    second, _ = measured(tmp_path / "b", lambda asked: Reply("x"), count=30, items=5, samples=2)
    assert {row["id"] for row in first.disagreements} == {row["id"] for row in second.disagreements}


def test_a_recording_is_not_measured(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "row-0", "output": "docs"}\n')
    found = asyncio.run(measure(RecordedPredictor(path), TASK, requests_of(TASK, [example("row-0")]), items=1,
                                samples=2, min_agreement=0.9, options=CollectOptions()))
    assert found.as_json()["measured"] is False and found.unanimous is None
