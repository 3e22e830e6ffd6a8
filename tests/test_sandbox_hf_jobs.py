"""Hugging Face's sandbox: repos and jobs as its own SDK meets them, refusals, a command that really runs."""

import hashlib
import json
import time

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    Volume,
    constants,
    set_client_factory,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    JobNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http

from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.hf_jobs_hub import HubRoutes
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.wire import fingerprint

KEY, OTHER = "hf_canary_0123456789", "hf_somebody_else"
USER = HubRoutes.user(fingerprint(KEY))
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
DATA = f"{USER}/data"


@pytest.fixture(autouse=True)
def plain_client(monkeypatch):
    """The SDK with its own client's behaviour, but for the tests' HF_HUB_OFFLINE."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    before = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=10))
    yield
    set_client_factory(before)


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("hf-jobs"), tmp_path / "state", speed=50.0) as sandbox:
        yield sandbox


@pytest.fixture
def api(sandbox):
    return HfApi(endpoint=sandbox.url, token=KEY)


@pytest.fixture
def data(api):
    api.create_repo(DATA, repo_type="dataset", private=True)
    return DATA


def commit(api, repo, files, **more):
    return api.create_commit(repo, [CommitOperationAdd(path, content) for path, content in files.items()],
                             commit_message="files", repo_type="dataset", **more)


def download(sandbox, path, key=KEY):
    return httpx2.get(f"{sandbox.url}/{path}", headers={"Authorization": f"Bearer {key}"})


# --- repos ---


UPLOADS_DEPRECATED = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # within the SDK


@UPLOADS_DEPRECATED
def test_files_come_back_as_they_were_sent_small_ones_and_large_ones(sandbox, api, data):
    made = commit(api, data, {"a/rows.jsonl": b'{"a": 1}\n', "w.safetensors": b"\0\1\2"})
    assert download(sandbox, f"datasets/{data}/resolve/{made.oid}/a/rows.jsonl").content == b'{"a": 1}\n'
    assert download(sandbox, f"datasets/{data}/resolve/main/w.safetensors").content == b"\0\1\2"
    small, large = api.get_paths_info(data, ["a/rows.jsonl", "w.safetensors", "no"], repo_type="dataset")
    assert small.blob_id == hashlib.sha1(b'blob 9\0{"a": 1}\n').hexdigest() and small.lfs is None
    assert large.lfs.sha256 == hashlib.sha256(b"\0\1\2").hexdigest()


@UPLOADS_DEPRECATED
def test_what_is_there_already_is_not_uploaded_again(sandbox, api, data):
    commit(api, data, {"w.safetensors": b"\0\1\2"})
    commit(api, data, {"copy.safetensors": b"\0\1\2"})
    assert sandbox.store.requests()["lfs.put"] == 1


def test_a_revision_keeps_its_files(sandbox, api, data):
    first = commit(api, data, {"x.txt": b"one"})
    second = commit(api, data, {"x.txt": b"two"})
    assert download(sandbox, f"datasets/{data}/resolve/{first.oid}/x.txt").content == b"one"
    assert api.repo_info(data, repo_type="dataset").sha == second.oid


def test_a_commit_on_an_old_parent_is_refused(api, data):
    first = commit(api, data, {"x.txt": b"one"})
    commit(api, data, {"x.txt": b"two"})
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, data, {"x.txt": b"three"}, parent_commit=first.oid)


def test_a_private_repo_is_not_there_for_others(sandbox, api, data):
    commit(api, data, {"x.txt": b"one"})
    other = HfApi(endpoint=sandbox.url, token=OTHER)
    with pytest.raises(RepositoryNotFoundError):
        other.repo_info(data, repo_type="dataset")
    assert download(sandbox, f"datasets/{data}/resolve/main/x.txt", OTHER).status_code == 404
    with pytest.raises(HfHubHTTPError, match="403"):
        other.create_repo(f"{USER}/mine", private=True)


def test_what_is_missing_is_named(sandbox, api, data):
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(data, repo_type="dataset", revision="0" * 40)
    assert download(sandbox, f"datasets/{data}/resolve/main/no").headers["X-Error-Code"] == "EntryNotFound"
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(data, [CommitOperationDelete("no.txt")], commit_message="x", repo_type="dataset")


@pytest.mark.parametrize("name", ["a--b", "a..b", "-a", "a" * 97])
def test_a_bad_name_is_refused(sandbox, name):
    reply = httpx2.post(f"{sandbox.url}/api/repos/create", json={"name": name, "type": "dataset"},
                        headers={"Authorization": f"Bearer {KEY}"})
    assert reply.status_code == 400


def test_a_repo_is_made_once(api, data):
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(data, repo_type="dataset")
    api.create_repo(data, repo_type="dataset", exist_ok=True)


def raw_commit(sandbox, *lines):
    body = "".join(json.dumps(line) + "\n" for line in lines)
    return httpx2.post(f"{sandbox.url}/api/datasets/{DATA}/commit/main", content=body,
                       headers={"Authorization": f"Bearer {KEY}"})


HEADER = {"key": "header", "value": {"summary": "x"}}


@pytest.mark.parametrize("lines, status", [
    ([{"key": "file", "value": {"path": "x", "content": "", "encoding": "base64"}}], 400),
    ([HEADER, {"key": "file", "value": {"path": "../x", "content": "", "encoding": "base64"}}], 400),
    ([HEADER, {"key": "file", "value": {"path": "/x", "content": "", "encoding": "base64"}}], 400),
    ([HEADER, {"key": "file", "value": {"path": ".git/x", "content": "", "encoding": "base64"}}], 400),
    ([HEADER, {"key": "file", "value": {"path": "x", "content": "AAEC", "encoding": "base64"}}], 400),
    ([HEADER, {"key": "file", "value": {"path": "x", "content": "hi", "encoding": "utf-8"}}], 400),
    ([HEADER, {"key": "lfsFile", "value": {"path": "x", "oid": "0" * 64, "size": 1}}], 400),
    ([HEADER, {"key": "moved", "value": {"path": "x"}}], 400)])
def test_a_commit_that_the_hub_would_not_take_is_refused_whole(sandbox, api, data, lines, status):
    good = {"key": "file", "value": {"path": "good", "content": "aGk=", "encoding": "base64"}}
    assert raw_commit(sandbox, *lines, good).status_code == status
    assert api.repo_info(data, repo_type="dataset").siblings == []


def test_storage_takes_only_what_was_announced(sandbox, api, data):
    batch = httpx2.post(f"{sandbox.url}/datasets/{data}.git/info/lfs/objects/batch", json={
        "operation": "upload", "transfers": ["basic"], "objects": [{"oid": "0" * 64, "size": 2}]},
        headers={"Authorization": f"Bearer {KEY}"}).json()
    where = batch["objects"][0]["actions"]["upload"]["href"]
    assert httpx2.put(where, content=b"hi").status_code == 400
    assert httpx2.put(f"{sandbox.url}/lfs-storage/guess", content=b"hi").status_code == 403


def test_no_token_and_an_impossible_one_are_refused(sandbox):
    for headers in ({}, {"Authorization": "Bearer a b"}):
        assert httpx2.get(f"{sandbox.url}/api/whoami-v2", headers=headers).status_code == 401


# --- creating jobs ---


def run(api, *command, **more):
    return api.run_job(**{"image": IMAGE, "command": ["uv", "run", *command], "flavor": "cpu-basic",
                          "namespace": USER, "timeout": "5m", **more})


def python(api, code, **more):
    return run(api, "python", "-c", code, **more)


def to_end(api, job):
    for _ in range(600):
        seen = api.inspect_job(job_id=job.id, namespace=USER)
        if seen.status.stage in ("COMPLETED", "ERROR", "CANCELED"):
            return seen
        time.sleep(0.02)
    raise AssertionError(seen)


@pytest.mark.parametrize("asked", [
    {"flavor": "l9x1"}, {"command": []}, {"timeout": -1}, {"attempts": 0},
    {"labels": {"a.b": "c"}}, {"labels": {"a": "b/c"}}, {"name": "a b"}, {"env": {"a-b": "c"}},
    {"secrets": {"S": 5}},
    {"volumes": [Volume(type="dataset", source=DATA, mount_path="relative")]},
    {"volumes": [Volume(type="bucket", source=DATA, mount_path="/in")]}])
def test_a_job_that_the_service_would_not_take_is_refused(sandbox, api, data, asked):
    with pytest.raises(BadRequestError):
        python(api, "", **asked)
    assert sandbox.jobs() == 0


@pytest.mark.parametrize("volume", [
    Volume(type="dataset", source=f"{USER}/nothing", mount_path="/in"),
    Volume(type="dataset", source=DATA, mount_path="/in", revision="0" * 40)])
def test_a_volume_that_is_not_there_is_refused(sandbox, api, data, volume):
    with pytest.raises(HfHubHTTPError, match="404"):
        python(api, "", volumes=[volume])


def test_another_account_runs_and_sees_no_jobs_here(sandbox, api):
    job = python(api, "")
    other = HfApi(endpoint=sandbox.url, token=OTHER)
    with pytest.raises(HfHubHTTPError, match="403"):
        python(other, "")
    with pytest.raises(HfHubHTTPError, match="403"):
        list(other.list_jobs(namespace=USER))
    with pytest.raises(JobNotFoundError):
        other.inspect_job(job_id=job.id, namespace=USER)


def test_a_listing_has_pages_newest_first_and_a_label_filter(sandbox, api):
    first = python(api, "", labels={"of": "us"})
    sandbox.crowd(230)
    listed = list(api.list_jobs(namespace=USER))
    assert len(listed) == 231 and listed[-1].id == first.id
    assert [job.id for job in api.list_jobs(namespace=USER, labels={"of": "us"})] == [first.id]
    assert sandbox.store.requests()["jobs.list"] == 4


def test_hardware_has_a_price_per_minute(api):
    (row,) = [row for row in api.list_jobs_hardware() if row.name == "a10g-small"]
    assert (row.accelerator.vram, row.unit_label) == ("24 GB", "minute")
    assert row.unit_cost_usd == pytest.approx(1 / 60, rel=1e-3)


# --- running them ---


def test_a_command_really_runs_with_its_mount_its_variables_and_its_secret_and_no_others(
        sandbox, api, data, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of the host")
    commit(api, data, {"sub/x.txt": b"mounted"})
    code = ("import os, sys; print(open(sys.argv[1] + '/x.txt').read(), os.environ['A'], "
            "len(os.environ['S']), os.environ.get('OPENAI_API_KEY'), bool(os.environ['JOB_ID']))")
    job = run(api, "python", "-c", code, "/in", env={"A": "b"}, secrets={"S": "hush-hush"}, volumes=[
        Volume(type="dataset", source=data, mount_path="/in", path="sub")])
    done = to_end(api, job)
    assert done.status.stage == "COMPLETED"
    assert list(api.fetch_job_logs(job_id=job.id, namespace=USER)) == ["mounted b 9 None True"]
    assert done.durations.running_secs is not None and done.started_at and done.finished_at
    (charge,) = sandbox.store.charges()
    assert (charge["id"], charge["amount"]) == (job.id, 1)


def test_a_secret_is_in_no_file_and_no_reply(sandbox, api, tmp_path):
    job = python(api, "", secrets={"S": "hush-hush"})
    assert "hush-hush" not in repr(to_end(api, job))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and (
        b"hush-hush" in path.read_bytes() or KEY.encode() in path.read_bytes())] == []


@pytest.mark.parametrize("asked, said", [
    ({"command": ["uv", "run", "python", "-c", "raise SystemExit(3)"]}, "exit code: 3"),
    ({"command": ["uv", "run", "--fast", "python"]}, "exit code: 2"),
    ({"command": ["bash"]}, "exit code: 2"),
    ({"command": ["uv", "run", "--with-requirements", "/in/none.txt", "python"]}, "exit code: 2"),
    ({"image": "ubuntu"}, "exit code: 2"),
    ({"command": ["uv", "run", "python", "-c", "import time; time.sleep(60)"], "timeout": 1}, "timeout")])
def test_a_command_that_fails_is_an_error_with_its_exit_code(api, asked, said):
    done = to_end(api, python(api, "", **asked))
    assert done.status.stage == "ERROR" and said in done.status.message


@pytest.mark.parametrize("line", ["no-such-package==1.0", "pytest==0.1", "pytest",
                                  "x @ file:///in/none-1.0-py3-none-any.whl"])
def test_requirements_that_are_not_here_are_refused_as_uv_would(api, data, line):
    commit(api, data, {"requirements.txt": line.encode()})
    job = run(api, "--with-requirements", "/in/requirements.txt", "python", "-c", "", volumes=[
        Volume(type="dataset", source=data, mount_path="/in")])
    assert to_end(api, job).status.stage == "ERROR"
    assert "error: " in "".join(api.fetch_job_logs(job_id=job.id, namespace=USER))


def test_a_running_job_s_log_stays_open_until_it_ends(api):
    job = python(api, "import time\nfor n in range(3): print(n, flush=True); time.sleep(0.3)")
    assert list(api.fetch_job_logs(job_id=job.id, namespace=USER, follow=True)) == ["0", "1", "2"]


def test_a_cancelled_job_runs_for_a_moment_more_and_is_ended(sandbox, api, tmp_path):
    mark = tmp_path / "mark"
    job = python(api, f"import time; open({str(mark)!r}, 'w').close(); time.sleep(60)")
    while not mark.exists():
        time.sleep(0.02)
    with sandbox.store.transaction():  # at this speed the moment would be over before we look
        sandbox.joblist.cancel(sandbox.joblist.get(job.id, None))
        assert sandbox.joblist.word(sandbox.joblist.get(job.id, None)) == "RUNNING"
    assert to_end(api, job).status.stage == "CANCELED"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.cancel_job(job_id=job.id, namespace=USER)


def test_repos_and_jobs_outlive_a_restart(sandbox, api, data, tmp_path):
    commit(api, data, {"x.txt": b"one"})
    job = python(api, "print('hi')")
    to_end(api, job)
    sandbox.__exit__()
    with Sandbox(part("hf-jobs"), tmp_path / "state", speed=50.0) as again:
        other = HfApi(endpoint=again.url, token=KEY)
        assert other.inspect_job(job_id=job.id, namespace=USER).status.stage == "COMPLETED"
        assert list(other.fetch_job_logs(job_id=job.id, namespace=USER)) == ["hi"]
        assert download(again, f"datasets/{data}/resolve/main/x.txt").content == b"one"


def test_a_job_that_a_restart_broke_off_is_run_again_with_rights_of_its_own(sandbox, api, tmp_path):
    mark = tmp_path / "mark"
    code = (f"import os, time, pathlib; m = pathlib.Path({str(mark)!r}); first = not m.exists(); m.touch(); "
            "time.sleep(60 * first); print(os.environ['HF_TOKEN'][:7])")
    job = python(api, code, secrets={"HF_TOKEN": KEY})
    while not mark.exists():
        time.sleep(0.02)
    sandbox.__exit__()
    with Sandbox(part("hf-jobs"), tmp_path / "state", speed=50.0) as again:
        other = HfApi(endpoint=again.url, token=KEY)
        assert to_end(other, job).status.stage == "COMPLETED"
        assert list(other.fetch_job_logs(job_id=job.id, namespace=USER)) == ["hf_job_"]


def test_a_scripted_refusal_is_in_the_service_s_words(sandbox, api):
    sandbox.add_fault(Fault("jobs.create", "refuse"))
    with pytest.raises(HfHubHTTPError) as refused:
        python(api, "")
    assert refused.value.server_message == sandbox.refusal
