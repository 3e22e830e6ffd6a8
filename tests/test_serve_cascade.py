"""`serve --cascade`: the teacher answers what the student is not sure of; nothing unsure is passed off."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.finished import RECIPES, linear_run, reopened

from distillctl import api
from distillctl.cli.main import cli
from distillctl.context import Context
from distillctl.errors import UsageError
from distillctl.testing.chat_server import Asked, ChatServer, Reply
from distillctl.using import budget_of, open_student

openai = pytest.importorskip("openai", reason="needs the `openai` extra")
pytest.importorskip("uvicorn", reason="needs the `serve` extra")
from distillctl.serve.cascade import open_cascade, threshold_of  # noqa: E402
from distillctl.serve.server import Server  # noqa: E402


class Teacher:
    """A live teacher that knows the recorded answers; `reply` overrides what it says."""

    def __init__(self) -> None:
        recorded = [json.loads(line) for line in
                    (RECIPES / "data" / "routing.teacher.jsonl").read_text().splitlines()]
        rows = [json.loads(line) for line in (RECIPES / "data" / "routing.jsonl").read_text().splitlines()]
        said = {row["id"]: row["output"] for row in recorded}
        self.says = {row["question"].strip(): said[row["id"]] for row in rows}
        self.reply: Reply | None = None

    def __call__(self, asked: Asked) -> Reply:
        question = asked.prompt.rpartition("Question: ")[2].rpartition("Mode:")[0].strip()
        return self.reply or Reply(self.says.get(question, "docs"))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture(scope="module")
def live(teacher: Teacher) -> Iterator[ChatServer]:
    with ChatServer(teacher) as server:
        yield server


@pytest.fixture(scope="module")
def run(live: ChatServer, tmp_path_factory: pytest.TempPathFactory) -> Context:
    workspace = tmp_path_factory.mktemp("workspace")
    spec = {"provider": "openai", "base_url": live.base_url, "model": "large", "api_key_env": None,
            "concurrency": 32, "price": {"input": 1, "output": 1}}
    done = api.run(RECIPES / "routing.yaml", backend="linear", yes=True, workspace=workspace, overrides=[
        "baseline=null", f"teacher={json.dumps(spec)}", "evaluate.latency.items=1",
        "verdict={max_drop: 0.2, marginal_drop: 0.3}"])
    return reopened(done.dir, workspace)


@contextmanager
def cascading(run: Context, threshold: float) -> Iterator[openai.OpenAI]:
    budget = budget_of(run)
    with open_student(run, budget) as student, open_cascade(run, student, threshold, budget) as cascade:
        server = Server(student, cascade=cascade)
        thread = threading.Thread(target=server.run, kwargs={"signals": False})
        thread.start()
        try:
            yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        finally:
            server.stop()
            thread.join()


def ask(client: openai.OpenAI, question: str, **more: object):
    """The reply's headers and its completion."""
    raw = client.chat.completions.with_raw_response.create(
        model="routing", messages=[], extra_body={"input": {"fields": {
            "question": question, "conversation_context": ""}}}, **more)
    return raw.headers, raw.parse()


def test_the_rule_is_the_evaluations(run: Context) -> None:
    """Of test items: the student answers those that it answers in the evaluation."""
    metrics = json.loads(run.path("metrics.json").read_text())["cascade"]
    threshold = threshold_of(run, None)
    assert threshold == metrics["threshold"]
    with cascading(run, threshold) as client:
        who = [ask(client, e.fields["question"])[0]["x-distillctl-answered-by"]
               for _, e in _alone(run)]
        counted = client._client.get(str(client.base_url).replace("/v1/", "/metrics")).text
    wanted = sum(_sure(run, p) >= threshold for p, _ in _alone(run))
    assert 0 < wanted < len(who)
    assert who.count("student") == wanted
    assert f'distillctl_answered_by_total{{who="student"}} {wanted}.0' in counted
    assert f'distillctl_answered_by_total{{who="teacher"}} {len(who) - wanted}.0' in counted


def _alone(run: Context) -> list[tuple]:
    """Predictions and examples without a conversation before them."""
    both = zip(run.predictions("student", "test"), run.examples("test"), strict=True)
    return [pair for pair in both if not pair[1].fields["conversation_context"]][:60]


def _sure(run: Context, prediction) -> float:
    from distillctl.evaluate.calibration import confidence

    metrics = json.loads(run.path("metrics.json").read_text())
    student = next(e for e in metrics["evaluations"] if e["role"] == "student")
    temperature = student["calibration"]["temperature"]
    return confidence(prediction.answer.label_logprobs, prediction.value, temperature)


def test_who_answered_and_how_sure_the_student_was_is_in_the_headers(run: Context) -> None:
    with cascading(run, 1.0) as client:
        headers, done = ask(client, "Where is the parser?", logprobs=True)
        assert headers["x-distillctl-answered-by"] == "teacher"
        assert 0 < float(headers["x-distillctl-confidence"]) < 1
        assert done.choices[0].logprobs is None  # the teacher states none
    with cascading(run, 0.0) as client:
        headers, done = ask(client, "Where is the parser?", logprobs=True)
        assert headers["x-distillctl-answered-by"] == "student"
        assert done.choices[0].logprobs.content


def test_the_teachers_answer_is_written_as_the_student_writes_it(run: Context, teacher: Teacher) -> None:
    teacher.reply = Reply(' "Hybrid."\n')
    try:
        with cascading(run, 1.0) as client:
            assert ask(client, "A question that nobody asked yet?")[1].choices[0].message.content == "hybrid"
    finally:
        teacher.reply = None


def test_equal_questions_are_paid_once(run: Context, live: ChatServer) -> None:
    before = len(live.asked)
    spent = run.ledger.spent(run.run_id).usd
    with cascading(run, 1.0) as client:
        for _ in range(3):
            ask(client, "The same question three times?")
    assert len(live.asked) == before + 1
    assert run.ledger.spent(run.run_id).usd > spent


def test_without_the_teacher_the_request_fails_and_no_unsure_answer_is_passed_off(
        run: Context, teacher: Teacher) -> None:
    teacher.reply = Reply(status=401, message="bad key")
    try:
        with cascading(run, 1.0) as client:
            with pytest.raises(openai.InternalServerError) as error:
                ask(client, "What when the teacher is away?")
            assert error.value.status_code == 502
            assert "bad key" not in str(error.value)
            teacher.reply = None
            assert ask(client, "What when the teacher is away?")[0]["x-distillctl-answered-by"] == "teacher"
    finally:
        teacher.reply = None


@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_may_not_leave_this_machine_is_the_students_to_answer(
        run: Context, live: ChatServer, elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the teacher is on this machine too. The reply says so, and it is counted."""
    pytest.importorskip("datafog", reason="needs the `pii` extra")
    recipe = run.recipe.model_copy(update={"data": run.recipe.data.model_copy(update={"pii": "refuse"})})
    careful = replace(run, loaded=replace(run.loaded, recipe=recipe))
    monkeypatch.setattr("distillctl.answering.on_this_machine", lambda url: not elsewhere)
    before = len(live.asked)
    with cascading(careful, 1.0) as client:
        headers, _ = ask(client, f"Who is jane.doe{elsewhere}@example.com?")
        counted = client._client.get(str(client.base_url).replace("/v1/", "/metrics")).text
    assert headers["x-distillctl-answered-by"] == ("student" if elsewhere else "teacher")
    assert headers.get("x-distillctl-kept-back") == ("personal-data" if elsewhere else None)
    assert len(live.asked) - before == (not elsewhere)
    assert f"distillctl_personal_data {float(elsewhere)}" in counted


def test_a_used_up_budget_is_a_429(run: Context) -> None:
    budget = budget_of(run)
    budget.max_usd = budget.spent
    with open_student(run) as student, open_cascade(run, student, 1.0, budget) as cascade:
        server = Server(student, cascade=cascade)
        thread = threading.Thread(target=server.run, kwargs={"signals": False})
        thread.start()
        try:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            with pytest.raises(openai.RateLimitError) as error:
                ask(client, "Is there money left?")
        finally:
            server.stop()
            thread.join()
    assert error.value.code == "insufficient_quota"


def serve(run: Context, *more: str) -> None:
    CliRunner().invoke(cli, ["serve", run.run_name, "--workspace", str(run.workspace.root), *more],
                       catch_exceptions=False, standalone_mode=False)


def test_a_recorded_teacher_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a recorded teacher knows its own questions alone"):
        serve(linear_run(tmp_path), "--cascade", "0.9")


def test_a_student_without_probabilities_is_refused(run: Context, tmp_path: Path) -> None:
    import shutil

    workspace = tmp_path / "workspace"
    shutil.copytree(run.workspace.root, workspace)
    path = workspace / "runs" / run.rundir.name / "metrics.json"
    metrics = json.loads(path.read_text())
    for one in metrics["evaluations"]:
        one["calibration"] = None
    path.write_text(json.dumps(metrics))
    other = reopened(api.RunDir(path.parent), workspace)
    with pytest.raises(UsageError, match="states no probabilities"):
        serve(other, "--cascade", "0.9")


@pytest.mark.parametrize("threshold", ["1.5", "often"])
def test_a_threshold_is_a_probability(run: Context, threshold: str) -> None:
    import click

    with pytest.raises(click.BadParameter, match="a probability from 0 to 1"):
        serve(run, "--cascade", threshold)
