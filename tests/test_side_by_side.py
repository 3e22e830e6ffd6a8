"""Six backends, one word changed: four providers' sandboxes, the local trainer, the classifier, side by side.

One workspace, sixty rows, everything through the command line. Whether hf-jobs answers in its job too is the
one setting that differs from what the sandboxes print.
"""

import asyncio
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.sandbox_runs import exports, small_recipe
from support.tiny_models import save_tiny_model

from distillctl import answering, api, stages
from distillctl.cli.main import cli
from distillctl.errors import DataError
from distillctl.sandbox import PARTS, part
from distillctl.sandbox.server import Sandbox
from distillctl.select import requests_of
from distillctl.store.files import read_json
from distillctl.store.workspace import Workspace

HOSTED = ("openai", "together", "vertex", "hf-jobs")
ALL = (*HOSTED, "local", "linear")
KEYS = {name: f"canary-{number}e0b7d19c2a8f653" for number, name in enumerate(HOSTED)}


@dataclass
class Done:
    """What six runs left: exit code and output by backend, twice; the providers and all that they keep.
    asked: by provider, each request's headers and everything else of it."""

    workspace: Path
    results: dict
    again: dict
    sandboxes: dict
    asked: dict


def listen(sandbox):
    """The requests that a sandbox gets from now on."""
    seen, account = [], sandbox.part.account

    def hear(call):
        seen.append((json.dumps(call.headers), call.url.encode() + b" " + call.body))
        return account(call)

    sandbox.part.account = hear
    return seen


def run(backend):
    return CliRunner().invoke(cli, ["run", "recipes/routing.yaml", "--backend", backend, "--yes", "--json"],
                              catch_exceptions=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("six")
    small_recipe(root / "workspace")
    model = str(save_tiny_model(root / "tiny", max_position_embeddings=2048))
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "workspace")
        sandboxes, asked = {}, {}
        for name in HOSTED:
            sandbox = Sandbox(part(name), root / name, tuner="nearest", speed=100.0)
            sandboxes[name] = stack.enter_context(sandbox)
            asked[name] = listen(sandbox)
            more = {"model": model, "answer": True} if name == "hf-jobs" else {}
            for variable, value in exports(sandbox, KEYS[name], **more).items():
                patch.setenv(variable, value)
        patch.setenv("DISTILLCTL_BACKEND_LOCAL", json.dumps({"model": model, "layers": 1}))
        results = {name: run(name) for name in ALL}
        again = {name: run(name) for name in ALL}
        yield Done(root / "workspace", results, again, sandboxes, asked)


@pytest.fixture(autouse=True)
def _there(done, monkeypatch):
    monkeypatch.chdir(done.workspace)


def folder_of(done, backend):
    return Path(json.loads(done.results[backend].stdout)["folder"])


def test_the_four_providers_all_have_a_sandbox():
    assert sorted(PARTS) == sorted(HOSTED)


@pytest.mark.parametrize("backend", ALL)
def test_one_word_changed_ends_with_a_verdict(done, backend):
    assert done.results[backend].exit_code == 0, done.results[backend].output
    found = json.loads(done.results[backend].stdout)
    assert found["metrics"]["verdict"]["word"] in ("viable", "marginal", "not ready")
    assert Path(found["report"]).is_file()
    assert json.loads((folder_of(done, backend) / "student.json").read_text())["backend"] == backend


@pytest.mark.parametrize("backend", ALL)
def test_a_second_run_reuses_every_stage(done, backend):
    assert done.again[backend].exit_code == 0 and "▸" not in done.again[backend].stderr


@pytest.mark.parametrize("backend", HOSTED)
def test_each_provider_made_one_job_and_charged_for_one(done, backend):
    sandbox = done.sandboxes[backend]
    charges = [charge["what"] for charge in sandbox.store.charges()]
    served = ["serving", "serving"] if backend == "together" else []  # the student, the untrained model
    assert (sandbox.creates(), sandbox.jobs(), charges[1:]) == (1, 1, served)
    assert sandbox.paid_servers() == 0


def test_they_stand_side_by_side_from_one_test_set_and_one_evaluator(done):
    found = CliRunner().invoke(cli, ["compare", "recipes/routing.yaml", "--json"], catch_exceptions=False)
    table = json.loads(found.stdout)
    folders = {backend: folder_of(done, backend) for backend in ALL}
    assert {Path(row["run"]).name for row in table["runs"]} == {path.name for path in folders.values()}
    metrics = [read_json(path / "metrics.json") for path in folders.values()]
    assert {one["test_digest"] for one in metrics} == {table["test_digest"]}
    assert len({api.load_run(path).evaluator for path in folders.values()}) == 1
    assert len({(path / "data/test.jsonl").read_bytes() for path in folders.values()}) == 1


def test_a_run_of_another_evaluator_is_not_compared(done, monkeypatch):
    """Its figures may mean something else."""
    runs = api.latest_runs("routing", Workspace(done.workspace))
    monkeypatch.setattr(api.Run, "evaluator", property(lambda self: 1 if self is runs[0] else 2))
    with pytest.raises(DataError, match="another version of the evaluator"):
        api.compare(runs)


def test_a_key_is_in_no_byte_that_anybody_keeps(done):
    """Not in run folders, ledger, logs or reports, nor in what a provider stores: the sandboxes' own state
    lies beside the workspace."""
    root = done.workspace.parent
    assert (done.workspace / ".distillctl/ledger.db").is_file() and (root / "hf-jobs").is_dir()
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    said = [result.output for result in (*done.results.values(), *done.again.values())]
    for key in KEYS.values():
        assert [path for path, data in kept.items() if key.encode() in data] == []
        assert not any(key in output for output in said)


@pytest.mark.parametrize("backend", HOSTED)
def test_a_key_travels_to_its_own_provider_in_a_header(done, backend):
    """And, for hf-jobs, as the one secret of the job."""
    assert done.asked[backend]
    for name, key in KEYS.items():
        heads = [head for head, _ in done.asked[backend] if key in head]
        bodies = [json.loads(rest.partition(b" ")[2]) for _, rest in done.asked[backend]
                  if key.encode() in rest]
        assert bool(heads) == (name == backend)
        assert [body.pop("secrets") for body in bodies] == (
            [{"HF_TOKEN": key}] if name == backend == "hf-jobs" else [])
        assert not any(key in json.dumps(body) for body in bodies)


def test_a_job_that_answers_leaves_nothing_to_ask_at_home(done):
    """Its latency is named as that of the job's machine."""
    folder = folder_of(done, "hf-jobs")
    timing = read_json(folder / "timings/student.json")
    assert timing["in_job"] and timing["machine"] and len(timing["latencies_s"]) == 2
    metrics = read_json(folder / "metrics.json")
    named = {one["role"]: (one["latency"] or {}).get("machine") for one in metrics["evaluations"]}
    assert named == {"teacher": None, "student": timing["machine"], "base": None}  # that is not timed
    assert read_json(folder / "timings/base.json")["in_job"]
    assert any("student: answered and timed in its training job, on" in note for note in metrics["notes"])
    assert "in its training job" in (folder / "report.html").read_text()


def test_what_hf_jobs_billed_is_what_its_student_cost(done):
    (charge,) = done.sandboxes["hf-jobs"].store.charges()
    found = read_json(folder_of(done, "hf-jobs") / "metrics.json")["economics"]["training_usd"]
    assert found == pytest.approx(charge["amount"] * 0.80 / 60, rel=1e-3)


def test_a_job_that_answers_says_what_it_would_say_at_home(done):
    folder = folder_of(done, "hf-jobs")
    ctx = api.open_run(api.load_run(folder).dir, Workspace(done.workspace))
    before = {p.id: p.answer.output for p in ctx.predictions("student", "test")}
    with answering.learner(ctx, "student", stages.student_ref(ctx, "student"), ctx.path("student")) as who:
        requests = requests_of(ctx.task, ctx.examples("test"))
        answers = asyncio.run(who.predictor.answer(requests))
    assert {r.id: a.output for r, a in zip(requests, answers, strict=True)} == before


def test_what_goes_to_the_job_of_the_test_split_is_its_prompts(done):
    blobs = done.workspace.parent / "hf-jobs/blobs"
    stored = [path.read_text(errors="replace") for path in blobs.iterdir()]
    prompts = [text for text in stored if '"split"' in text and '"messages"' in text]
    assert len(prompts) == 1
    rows = [json.loads(line) for line in prompts[0].splitlines()]
    assert {row["split"] for row in rows} == {"dev", "test"}
    assert all(set(row) == {"id", "split", "messages"} for row in rows)
