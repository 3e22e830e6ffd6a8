"""The core of the sandboxes: state, faults, a job's life, bodies as they were sent."""

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from typing import ClassVar

import pytest

from distillctl.errors import UsageError
from distillctl.sandbox.faults import Fault, Faults, parse_fault
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.store import Store
from distillctl.sandbox.tuner import BackendTuner, NearestTuner, TuningFailed, labels_of
from distillctl.sandbox.wire import Call, ProviderPart, Refused, Reply, route
from distillctl.store.files import write_jsonl

ROWS = [{"messages": [{"role": "user", "content": f"{word} number {n}"}], "completion": answer}
        for n in range(6) for word, answer in (("meow", "cat"), ("woof", "dog"))]


class AcmePart(ProviderPart):
    """A provider as small as can be."""

    name = "acme"
    phases = (("pending", 10.0), ("running", 10.0))
    ends: ClassVar = {"succeeded": "done", "failed": "error", "cancelled": "stopped"}
    cancelling = "stopping"

    @route("POST", "/jobs", "jobs.create")
    def create(self, call: Call):
        asked = call.json()
        if asked.get("bad"):
            self.jobs.create(call, asked, ROWS, 1)
            raise Refused(422, "bad", field="bad")
        return {"id": self.jobs.create(call, asked, ROWS, 1, asked.get("failure")).id}

    @route("GET", "/jobs", "jobs.list")
    def list(self, call: Call):
        return {"jobs": [job.id for job in self.jobs.listing(call)]}

    @route("GET", "/jobs/{id}", "jobs.get")
    def get(self, call: Call):
        job = self.jobs.get(call.path["id"], call.account)
        if job is None:
            raise Refused(404, "no such job")
        return {"word": self.jobs.word(job, call)}

    @route("POST", "/jobs/{id}:cancel", "jobs.cancel")
    def cancel(self, call: Call):
        return {"was": self.jobs.cancel(self.jobs.get(call.path["id"], call.account))}

    @route("POST", "/jobs/{id}:ask", "ask", slow=True)
    def ask(self, call: Call):
        job = self.jobs.get(call.path["id"], call.account)
        return self.sandbox.answer(self.jobs.student(job), [{"role": "user", "content": "meow"}]).as_json()

    @route("PUT", "/blobs/{name*}", "put")
    def put(self, call: Call):
        return Reply(call.body, headers={"X-Name": call.path["name"]})

    @route("POST", "/form", "form")
    def form(self, call: Call):
        return {name: [file, len(data)] for name, (file, data) in call.multipart().items()}

    def new_job_id(self):
        return f"job-{len(self.store.list('job')) + 1}"

    def key_variable(self):
        return "ANY_KEY"

    def settings(self, url):
        return {"base_url": url}

    def ended(self, job):
        self.store.charge(job.account, "training", job.id, 2.5, "usd")

    def anonymous(self, request):
        return {}


class SlowTuner(NearestTuner):
    """Trains until it is stopped."""

    def __init__(self):
        self.began = threading.Event()

    def train(self, rows, epochs, into, report, stop):
        self.began.set()
        stop.wait(30)


class BrokenTuner(NearestTuner):
    def train(self, rows, epochs, into, report, stop):
        raise TuningFailed("the rows are no good")


def ask(sandbox, method, path, body=None, key="key-of-one"):
    request = urllib.request.Request(sandbox.url + path, method=method, headers={
        "Authorization": f"Bearer {key}"}, data=None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.loads(reply.read())


def refusal(sandbox, *args, **more):
    with pytest.raises(urllib.error.HTTPError) as raised:
        ask(sandbox, *args, **more)
    return raised.value.code, json.loads(raised.value.read())


def words(sandbox, job_id, until="done"):
    """Every word that status requests bring, up to `until`."""
    seen = []
    for _ in range(400):
        seen.append(ask(sandbox, "GET", f"/jobs/{job_id}")["word"])
        if seen[-1] == until:
            return seen
        time.sleep(0.01)
    raise AssertionError(seen[-3:])


@pytest.fixture
def acme(tmp_path):
    with Sandbox(AcmePart, tmp_path, tuner="nearest", speed=None) as sandbox:
        yield sandbox


# --- a job's life ---


def test_a_job_goes_through_the_provider_s_words_in_order(acme):
    job = ask(acme, "POST", "/jobs", {})["id"]
    seen = words(acme, job)
    assert list(dict.fromkeys(seen)) == ["pending", "running", "done"]


def test_with_a_speed_phases_pass_by_themselves(tmp_path):
    with Sandbox(AcmePart, tmp_path, tuner="nearest", speed=1000.0) as sandbox:
        job = ask(sandbox, "POST", "/jobs", {})["id"]
        assert words(sandbox, job)[-1] == "done"


def test_the_tuned_model_answers_from_what_was_uploaded(acme):
    job = ask(acme, "POST", "/jobs", {})["id"]
    words(acme, job)
    answer = ask(acme, "POST", f"/jobs/{job}:ask", {})
    assert answer["output"] == "cat" and set(answer["label_logprobs"]) == {"cat", "dog"}


def test_a_failure_that_validation_found_ends_the_job_after_its_first_phase(acme):
    job = ask(acme, "POST", "/jobs", {"failure": {"message": "wrong format"}})["id"]
    assert words(acme, job, "error") == ["pending", "error"]


def test_a_training_that_fails_fails_its_job_and_the_next_one_runs(tmp_path):
    with Sandbox(AcmePart, tmp_path, tuner=BrokenTuner(), speed=None) as sandbox:
        for _ in range(2):
            job = ask(sandbox, "POST", "/jobs", {})["id"]
            words(sandbox, job, "error")
            assert sandbox.joblist.get(job, None).failure == {"message": "the rows are no good"}


def test_cancelling_takes_effect_later_and_stops_the_training(tmp_path):
    tuner = SlowTuner()
    with Sandbox(AcmePart, tmp_path, tuner=tuner, speed=None) as sandbox:
        job = ask(sandbox, "POST", "/jobs", {})["id"]
        assert tuner.began.wait(10)
        assert ask(sandbox, "POST", f"/jobs/{job}:cancel", {})["was"]
        assert words(sandbox, job, "stopped") == ["stopping", "stopped"]
        assert not ask(sandbox, "POST", f"/jobs/{job}:cancel", {})["was"]
        tuner.began.clear()
        ask(sandbox, "POST", "/jobs", {})
        assert tuner.began.wait(10)  # the one thread is free again


def test_an_end_is_billed_once(acme):
    job = ask(acme, "POST", "/jobs", {})["id"]
    for _ in range(3):
        words(acme, job)
    assert [(charge["id"], charge["amount"]) for charge in acme.store.charges()] == [(job, 2.5)]


# --- state ---


def test_jobs_students_and_counts_outlive_a_restart(tmp_path):
    with Sandbox(AcmePart, tmp_path, tuner="nearest", speed=None) as sandbox:
        job = ask(sandbox, "POST", "/jobs", {})["id"]
        words(sandbox, job)
    with Sandbox(AcmePart, tmp_path, tuner="nearest", speed=None) as sandbox:
        assert ask(sandbox, "GET", f"/jobs/{job}")["word"] == "done"
        assert ask(sandbox, "POST", f"/jobs/{job}:ask", {})["output"] == "cat"
        assert (sandbox.creates(), sandbox.jobs(), len(sandbox.store.charges())) == (1, 1, 1)


def test_a_training_that_a_stop_cut_off_begins_again(tmp_path):
    tuner = SlowTuner()
    with Sandbox(AcmePart, tmp_path, tuner=tuner, speed=None) as sandbox:
        job = ask(sandbox, "POST", "/jobs", {})["id"]
        assert tuner.began.wait(10)
    with Sandbox(AcmePart, tmp_path, tuner="nearest", speed=None) as sandbox:
        assert words(sandbox, job)[-1] == "done"


def test_a_refused_request_leaves_nothing_behind(acme):
    assert refusal(acme, "POST", "/jobs", {"bad": True}) == (
        422, {"error": {"message": "bad", "field": "bad"}})
    assert acme.jobs() == 0


def test_accounts_do_not_see_each_other(acme):
    job = ask(acme, "POST", "/jobs", {})["id"]
    assert refusal(acme, "GET", f"/jobs/{job}", key="key-of-another")[0] == 404
    assert ask(acme, "GET", "/jobs", key="key-of-another") == {"jobs": []}


def test_a_key_is_asked_for_and_never_kept(acme, tmp_path):
    assert refusal(acme, "GET", "/jobs", key="")[0] == 401
    ask(acme, "POST", "/jobs", {}, key="canary-77aa88bb99")
    assert not any(b"canary-77aa88bb99" in path.read_bytes() for path in tmp_path.rglob("*")
                   if path.is_file())


def test_a_transaction_is_all_or_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyError), store.transaction():
        store.put("thing", "a", {})
        raise KeyError
    assert store.list("thing") == []
    store.close()


# --- faults ---


@pytest.mark.parametrize("fault, code, jobs", [
    (Fault("jobs.create", "status", "503"), 503, 0), (Fault("jobs.create", "refuse"), 403, 0),
    (Fault("jobs.create", "status_after", "500"), 500, 1)])
def test_a_status_fault_does_what_it_says(acme, fault, code, jobs):
    acme.add_fault(fault)
    assert refusal(acme, "POST", "/jobs", {})[0] == code
    assert (acme.creates(), acme.jobs()) == (1, jobs)


@pytest.mark.parametrize("what, jobs", [("drop_before", 0), ("drop_after", 1), ("truncate", 1)])
def test_a_broken_connection_is_seen_as_one(acme, what, jobs):
    acme.add_fault(Fault("jobs.create", what))
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(acme, "POST", "/jobs", {})
    assert (acme.creates(), acme.jobs()) == (1, jobs)


def test_a_garbled_reply_is_no_json(acme):
    acme.add_fault(Fault("jobs.create", "garble"))
    with pytest.raises(ValueError):
        ask(acme, "POST", "/jobs", {})


def test_a_stall_comes_after_the_job(acme):
    acme.add_fault(Fault("jobs.create", "stall", "30"))
    with closing(http.client.HTTPConnection(acme.url.removeprefix("http://"), timeout=0.3)) as stalled:
        stalled.request("POST", "/jobs", b"{}", {"Authorization": "Bearer key-of-one"})
        with pytest.raises(TimeoutError):
            stalled.getresponse()
    assert acme.jobs() == 1


def test_listings_can_lag_and_repeat(acme):
    first, second = (ask(acme, "POST", "/jobs", {})["id"] for _ in range(2))
    for fault in (Fault("jobs.list", "hide", "1"), Fault("jobs.list", "repeat")):
        acme.add_fault(fault)
    assert ask(acme, "GET", "/jobs")["jobs"] == [first]
    assert ask(acme, "GET", "/jobs")["jobs"] == [second, second, first, first]
    assert ask(acme, "GET", "/jobs")["jobs"] == [second, first]


def test_an_unknown_word_is_shown_as_often_as_asked(acme):
    job = ask(acme, "POST", "/jobs", {})["id"]
    acme.add_fault(Fault("jobs.get", "word", "reticulating", 2))
    assert words(acme, job)[:2] == ["reticulating", "reticulating"]


def test_faults_are_used_up_in_order():
    faults = Faults([Fault("a", "status", "500", 2), Fault("*", "garble"), Fault("a", "stall", "1", None)])
    assert [faults.take(name).what for name in "aabaa"] == ["status", "status", "garble", "stall", "stall"]
    assert faults.take("b") is None


@pytest.mark.parametrize("text, fault", [
    ("jobs.create=drop_after", Fault("jobs.create", "drop_after")),
    ("jobs.get=status:503*20", Fault("jobs.get", "status", "503", 20)),
    ("jobs.get=word:odd word*", Fault("jobs.get", "word", "odd word", None)),
    ("*=stall:2", Fault("*", "stall", "2"))])
def test_a_fault_is_read_as_a_user_writes_it(text, fault):
    assert parse_fault(text, ["jobs.create", "jobs.get"]) == fault


@pytest.mark.parametrize("text", ["jobs.create", "nowhere=garble", "jobs.get=explode", "jobs.get=status",
                                  "jobs.get=status:abc", "jobs.get=word"])
def test_a_wrong_fault_is_refused_with_what_there_is(text):
    with pytest.raises(UsageError, match=r"fault|value"):
        parse_fault(text, ["jobs.create", "jobs.get"])


# --- bytes on the wire ---


def raw(sandbox, method, path, body, **headers):
    with closing(http.client.HTTPConnection(sandbox.url.removeprefix("http://"), timeout=10)) as connection:
        connection.request(method, path, body, {"Authorization": "Bearer k", **headers})
        reply = connection.getresponse()
        return reply.headers, reply.read()


def test_bodies_arrive_as_they_were_sent_also_in_chunks(acme):
    data = bytes(range(256)) * 300
    for body in (data, iter([data[:1000], data[1000:]])):
        headers, came = raw(acme, "PUT", "/blobs/a/b%20c.bin", body)
        assert headers["X-Name"] == "a/b c.bin" and came == data


def test_a_form_s_file_keeps_every_byte(acme):
    data = b"line\r\n\r\n--nearly\r\n" + bytes(range(256))
    body = (b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n'
            b'Content-Type: application/octet-stream\r\n\r\n' + data + b"\r\n--xyz--\r\n")
    _, came = raw(acme, "POST", "/form", body, **{"Content-Type": "multipart/form-data; boundary=xyz"})
    assert json.loads(came) == {"purpose": [None, 9], "file": ["rows.jsonl", len(data)]}


def test_an_unknown_path_is_refused_and_counted(acme):
    assert refusal(acme, "GET", "/nowhere")[0] == 404
    assert acme.store.requests() == {"unknown": 1}


# --- who trains ---


def test_few_short_answers_are_labels_and_others_are_text(tmp_path):
    write_jsonl(tmp_path / "labels.jsonl", ROWS)
    write_jsonl(tmp_path / "text.jsonl", [{**row, "completion": f"a long answer {n}" * 9}
                                          for n, row in enumerate(ROWS)])
    assert labels_of(tmp_path / "labels.jsonl") == ["cat", "dog"]
    assert labels_of(tmp_path / "text.jsonl") == []


def test_a_backend_of_this_machine_trains_behind_a_sandbox(tmp_path):
    with Sandbox(AcmePart, tmp_path, tuner="linear", speed=None) as sandbox:
        job = ask(sandbox, "POST", "/jobs", {})["id"]
        words(sandbox, job)
        assert ask(sandbox, "POST", f"/jobs/{job}:ask", {})["output"] == "cat"


def test_rows_that_the_trainer_refuses_fail_the_job(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{**row, "completion": "cat"} for row in ROWS])
    with pytest.raises(TuningFailed):
        BackendTuner("linear").train(tmp_path / "rows.jsonl", 1, tmp_path, lambda data: None,
                                     threading.Event())


def test_a_backend_that_sends_data_away_cannot_train_behind_a_sandbox():
    with pytest.raises(UsageError, match="on this machine"):
        BackendTuner("openai")
