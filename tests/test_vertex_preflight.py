"""The vertex backend's preflight: what it finds out for free."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from distillctl_vertex.backend import VertexBackend
from distillctl_vertex.preflight import examine
from pydantic import ValidationError
from support.backends import problems, rewritten, to_end
from support.vertex import OPEN, env, opened, rehearsal, settings

from distillctl.backend import Unreachable
from distillctl.jobs import new_token
from distillctl.recipe.models import LoraSpec, TrainSpec
from distillctl.sandbox.vertex import VertexPart


@pytest.fixture
def sandbox(tmp_path):
    with rehearsal(tmp_path) as sandbox:
        yield sandbox


def offline(tmp_path, job, at=None, **more):
    """What preflight says without asking anybody."""
    chosen = settings(None, **more)
    return examine(job, chosen.model, chosen, env(tmp_path, at=at and at.timestamp(), offline=True))


@pytest.mark.parametrize("model", ["smollm2-135m", "gpt-4.1-mini-2025-04-14", "Qwen/Qwen3-0.6B"])
def test_what_google_cannot_tune_is_a_problem_that_names_the_field(tmp_path, job, model):
    assert "`backends.vertex.model`: is no model that Vertex AI tunes" in problems(
        offline(tmp_path, job, model=model))


def test_a_model_that_is_not_there_is_a_problem(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, model="gemini-9-pro").preflight(job)
    assert "has no such model" in problems(found)
    assert any("not among the Gemini models" in text for text in found.warnings)


def test_a_retired_model_is_a_problem_with_its_date(tmp_path, job):
    day = datetime(2026, 10, 16, tzinfo=UTC)
    found = offline(tmp_path, job, day, model="gemini-2.5-flash")
    assert "was to retire on 2026-10-16" in problems(found)


@pytest.mark.parametrize("day, place", [(datetime(2027, 6, 1, tzinfo=UTC), "notes"),
                                        (datetime(2027, 7, 1, tzinfo=UTC), "warnings")])
def test_a_retirement_is_said_and_warned_of_when_it_is_near(tmp_path, job, day, place):
    said = "\n".join(getattr(offline(tmp_path, job, day), place))
    assert "at the earliest on 2027-07-21" in said and "every model tuned from it" in said


def test_a_missing_token_is_a_problem_that_names_the_variable(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, token=None).preflight(job)
    assert "VERTEX_SANDBOX_TOKEN is not set" in problems(found)
    assert sandbox.store.requests() == {}


def test_a_foreign_project_is_a_problem_in_google_s_words(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, project="another-project").preflight(job)
    assert "Permission denied on resource project another-project" in problems(found)


def test_a_missing_bucket_is_a_problem_with_the_command_that_makes_it(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, bucket="no-such-bucket").preflight(job)
    assert "gcloud storage buckets create gs://no-such-bucket" in problems(found)


def test_missing_rights_on_the_bucket_are_named(sandbox, tmp_path, job, monkeypatch):
    monkeypatch.setattr(VertexPart, "test_permissions", lambda self, call: {
        "permissions": ["storage.objects.get", "storage.objects.list"]})
    found = opened(sandbox, tmp_path).preflight(job)
    assert "lack storage.objects.create on the bucket" in problems(found)


def test_a_service_that_is_down_is_unreachable(sandbox, tmp_path, job):
    with sandbox.outage(), pytest.raises(Unreachable):
        opened(sandbox, tmp_path).preflight(job)


def test_what_cannot_be_told_is_said(tmp_path, job):
    notes = "\n".join(offline(tmp_path, job).notes)
    for name in ("seed", "learning_rate", "batch_size", "schedule", "warmup", "weight_decay", "lora.alpha"):
        assert name in notes
    assert "3 epochs" in notes


def test_an_open_model_is_told_its_learning_rate(tmp_path, job):
    found = offline(tmp_path, replace(job, train=TrainSpec(epochs=1, learning_rate=1e-3, batch_size=4)),
                    model=OPEN)
    notes = "\n".join(found.notes)
    assert "learning rate 0.001, 4 rows a step" in notes and "meta-llama/Llama-3.1-8B-Instruct" in notes
    assert found.problems == ()


def test_a_rank_that_google_lacks_is_rounded_down_and_said(tmp_path, job):
    found = offline(tmp_path, replace(job, train=TrainSpec(lora=LoraSpec(rank=12))))
    assert any("rank 8: Google has none of rank 12" in note for note in found.notes)


@pytest.mark.parametrize("more, said", [
    ({"tuning_mode": "full"}, "is for open models"), ({"learning_rate": 0.1}, "is for open models"),
    ({"model": OPEN, "learning_rate_multiplier": 2.0}, "is for Gemini models"),
    ({"adapter_size": 32}, "takes 1, 2, 4, 8, 16"),
    ({"model": "qwen/qwen3@qwen3-4b", "tuning_mode": "adapter"}, "by full alone"),
    ({"model": "google/gemma4@gemma-4-e2b-it"}, "set backends.vertex.hub_model")])
def test_a_setting_that_the_model_does_not_take_is_a_problem(tmp_path, job, more, said):
    assert said in problems(offline(tmp_path, job, **more))


FULL = TrainSpec(lora=None, learning_rate=2e-5)


def test_every_weight_of_an_open_model_is_tuned_where_the_recipe_has_no_adapter(tmp_path, job):
    found = offline(tmp_path, replace(job, train=FULL), model=OPEN)
    assert (found.problems, [text for text in found.warnings if "lora" in text]) == ((), [])
    assert "all weights are tuned" in found.notes
    hot = offline(tmp_path, replace(job, train=TrainSpec(lora=None)), model=OPEN)
    assert any("a tenth" in text for text in hot.warnings)


@pytest.mark.parametrize("more, field", [
    ({"model": "google/gemma4@gemma-4-e2b-it", "hub_model": "google/gemma-4-e2b-it"}, "train.lora"),
    ({"model": OPEN, "tuning_mode": "adapter"}, "backends.vertex.tuning_mode")])
def test_an_adapter_alone_contradicts_every_weight(tmp_path, job, more, field):
    found = offline(tmp_path, replace(job, train=FULL), **more)
    assert [problem.field for problem in found.problems] == [field]


def test_that_gemini_gets_an_adapter_all_the_same_is_warned_of_until_its_rank_is_named(tmp_path, job):
    asked = replace(job, train=FULL)
    assert any("train.lora: null" in text for text in offline(tmp_path, asked).warnings)
    named = offline(tmp_path, asked, adapter_size=8)
    assert not any("train.lora: null" in text for text in named.warnings)
    assert "an adapter of rank 8" in named.notes


def test_few_rows_are_warned_of_and_none_is_a_problem(tmp_path, job):
    assert any("24 rows: Google recommends at least 100" in text
               for text in offline(tmp_path, job).warnings)
    assert "nothing to train on" in problems(offline(tmp_path, replace(job, rows=0)))


def test_a_region_where_nothing_is_tuned_is_warned_of(tmp_path, job):
    assert any("antarctica-south1 is no region" in text
               for text in offline(tmp_path, job, location="antarctica-south1").warnings)


def test_an_empty_answer_is_a_problem_at_its_place(tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": " "} if n == 4 else row)
    assert "notes.jsonl:5: the assistant message is empty" in problems(offline(tmp_path, job))


def test_a_row_that_google_may_drop_is_named_before_it_is_paid(tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": "x" * 300_000} if n == 6 else row)
    assert any("1 rows may have more than 131,072 tokens" in text and "notes.jsonl:7" in text
               for text in offline(tmp_path, job).warnings)


def test_the_cost_has_a_ceiling_above_the_bill(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path, training_price=5.0)
    low, high = backend.preflight(job).cost_usd
    seen = to_end(backend, backend.submit(job, backend.stage(job), new_token()))
    (charge,) = sandbox.store.charges()
    assert 0 < low < high and seen.cost_usd == pytest.approx(charge["amount"] * 5.0 / 1e6)
    assert seen.cost_usd <= high


def test_an_unknown_price_of_training_is_unknown_and_said(tmp_path, job):
    found = offline(tmp_path, job)
    assert found.cost_usd is None and any("training_price" in note for note in found.notes)


def test_an_unknown_price_of_answers_stops_before_anything_is_paid(tmp_path, job):
    assert "backends.vertex.price" in problems(offline(tmp_path, job, model="gemini-9-pro", price=None))


def test_offline_asks_nothing(sandbox, tmp_path, job):
    found = VertexBackend(settings(sandbox), env(tmp_path, offline=True)).preflight(job)
    assert sandbox.store.requests() == {} and "sandbox-bucket" in found.sends_to[0]


@pytest.mark.parametrize("address", ["http://example.com", "ftp://localhost", "https:///",
                                     "https://user:pass@host", "https://host?key=1"])
def test_an_address_that_would_leak_is_refused(address):
    with pytest.raises(ValidationError):
        settings(None, base_url=address)


@pytest.mark.parametrize("location, address", [
    ("us-central1", "https://us-central1-aiplatform.googleapis.com"),
    ("global", "https://aiplatform.googleapis.com")])
def test_each_region_has_its_address(location, address):
    assert settings(None).address(location) == address
