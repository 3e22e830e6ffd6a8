"""`predict --engine ray` on a real Ray of two nodes, both on this machine: the lines of `--engine local`,
whoever dies."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from support.entry_points import register
from support.finished import RECIPES, reopened, tiny_run

from distillctl import api
from distillctl import predict as work
from distillctl.cli.main import cli
from distillctl.context import Context
from distillctl.engines import open_on
from distillctl.errors import MissingExtra, StudentError, UsageError
from distillctl.progress import Silent
from distillctl.ray_engine import AHEAD, Opened, check_alike, spread

BATCH = 64  # of the nearest backend's predictor
STRANGER = Path(__file__).parent / "stranger_backend"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A light backend, for this process and, as PYTHONPATH, for those that it starts."""
    registered = register(tmp_path_factory.mktemp("installed"), "nearest-backend",
                          nearest="nearest_backend:NearestBackend")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STRANGER)
        patch.syspath_prepend(registered)
        yield os.pathsep.join([str(registered), str(STRANGER), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    workspace = tmp_path_factory.mktemp("workspace")
    done = api.run(RECIPES / "routing.yaml", backend="nearest", workspace=workspace,
                   overrides=["baseline=null", "student.model=nearest"])
    return reopened(done.dir, workspace)


@pytest.fixture(scope="module")
def source(run: Context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for more batches than two workers have at once."""
    path = tmp_path_factory.mktemp("rows") / "in.jsonl"
    rows = [json.dumps({"id": e.id, **e.fields}) + "\n" for e in run.examples("test")]
    path.write_text("".join(islice(cycle(rows), 6 * AHEAD * BATCH)))
    return path


@pytest.fixture(scope="module")
def wanted(run: Context, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the student answers without Ray."""
    out = tmp_path_factory.mktemp("local") / "out.jsonl"
    predict(run, source, out, "--engine", "local")
    return out.read_bytes()


class Nodes:
    """A Ray of two nodes with a processor each, which are processes of this machine. variables: name it."""

    CODE = """
import itertools, sys
from ray.cluster_utils import Cluster
size = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
nodes = Cluster(initialize_head=True, head_node_args=size)
for command in itertools.chain(["gain"], sys.stdin):
    if command.strip() == "gain":
        second = nodes.add_node(**size)
    else:
        nodes.remove_node(second, allow_graceful=False)
    print(nodes.address.rpartition(":")[2], flush=True)
nodes.shutdown()
"""

    def __init__(self, pythonpath: str) -> None:
        own = token()
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, env={**os.environ, **own, "PYTHONPATH": pythonpath})
        self.variables = {"RAY_ADDRESS": f"127.0.0.1:{self._reply()}", **own}

    def _reply(self) -> str:
        return self._process.stdout.readline().strip()

    def _command(self, word: str) -> None:
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._reply()

    def lose(self) -> None:
        """End the second node as a power cut would."""
        self._command("lose")

    def gain(self) -> None:
        """Start a second node."""
        self._command("gain")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def cluster(installed: str) -> Iterator[Nodes]:
    skip_without_ray()
    nodes = Nodes(installed)
    yield nodes
    nodes.close()


def token() -> dict[str, str]:
    """Variables that protect a Ray; else one would be kept in the home folder."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def skip_without_ray() -> None:
    if find_spec("ray") is None:  # not imported here: on import it reads the variables of `cluster`
        pytest.skip("needs the `ray` extra")


@pytest.fixture
def on_cluster(cluster: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)


def predict(run: Context, source: Path, output: Path, *more: str) -> dict:
    done = CliRunner().invoke(cli, [*command(run, source, output), *more, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def command(run: Context, source: Path, output: Path) -> list[str]:
    return ["predict", run.run_name, "--workspace", str(run.workspace.root), "-i", str(source),
            "-o", str(output)]


def in_a_process(run: Context, source: Path, output: Path, **variables: str,
                 ) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distillctl.cli.main", *command(run, source, output), "--engine", "ray"],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **variables})


def test_two_workers_write_the_lines_of_one_process_in_their_order(
        run: Context, source: Path, wanted: bytes, on_cluster: None, tmp_path: Path) -> None:
    predict(run, source, tmp_path / "out.jsonl", "--engine", "ray")
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_a_killed_worker_costs_no_line_and_repeats_none(
        run: Context, source: Path, wanted: bytes, on_cluster: None, tmp_path: Path) -> None:
    killed = []

    def rows() -> Iterator[work.Row]:
        for number, row in enumerate(work.read_requests(source, run.task, run.recipe.data.id)):
            if number in (2 * AHEAD * BATCH, 4 * AHEAD * BATCH):  # the window is full: all are at work
                killed.append(kill_a_worker())
            yield row

    with open_on(run, "ray", 2) as student:
        done = work.predict(student, rows(), tmp_path / "out.jsonl", Silent())
    assert len(set(killed)) == 2
    assert done.failed == 0
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_a_lost_node_costs_no_line(
        run: Context, source: Path, wanted: bytes, cluster: Nodes, on_cluster: None, tmp_path: Path) -> None:
    def rows() -> Iterator[work.Row]:
        for number, row in enumerate(work.read_requests(source, run.task, run.recipe.data.id)):
            if number == 2 * AHEAD * BATCH:
                cluster.lose()
            yield row

    try:
        with open_on(run, "ray", 2) as student:
            done = work.predict(student, rows(), tmp_path / "out.jsonl", Silent())
    finally:
        cluster.gain()
    assert done.failed == 0
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def kill_a_worker() -> int:
    """Kill the youngest worker process; its id."""
    found = max(int(line.parent.name) for line in Path("/proc").glob("[0-9]*/cmdline")
                if line.read_bytes().startswith(b"ray::Worker"))
    os.kill(found, signal.SIGKILL)
    return found


def test_a_killed_driver_is_gone_on_with_on_any_engine(
        run: Context, source: Path, wanted: bytes, on_cluster: None, installed: str, tmp_path: Path) -> None:
    killed = in_a_process(run, source, tmp_path / "out.jsonl", PYTHONPATH=installed, DISTILLCTL_TESTING="1",
                          DISTILLCTL_CRASH_AT="after-predict-batch:2")
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 2 * BATCH
    again = predict(run, source, tmp_path / "out.jsonl", "--engine", "ray")
    assert again["reused"] == 2 * BATCH
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_without_an_address_a_ray_of_this_machine_is_started_and_ended(
        run: Context, installed: str, tmp_path: Path) -> None:
    skip_without_ray()
    few = tmp_path / "in.jsonl"
    few.write_text(json.dumps({"id": 1, "question": "Where is it?", "conversation_context": ""}) + "\n"
                   + "{half a row\n")
    with TemporaryDirectory() as folder:  # pytest's own is too long a name for Ray's sockets
        done = in_a_process(run, few, tmp_path / "out.jsonl", PYTHONPATH=installed, TMPDIR=folder,
                            RAY_ADDRESS="", **token())
        assert not processes_of(folder)
        assert not list(Path(folder).iterdir())
    assert done.returncode == 1
    noted, *_, error = done.stderr.strip().splitlines()
    assert noted.startswith("workers: 1, each with ") and noted.endswith(" on a Ray of this machine")
    assert "in.jsonl:2: is not JSON" in error
    assert [line["id"] for line in lines(tmp_path / "out.jsonl")] == ["1", None]


def processes_of(folder: str) -> list[str]:
    """Command lines that name it."""
    lines = [line.read_bytes().decode(errors="replace") for line in Path("/proc").glob("[0-9]*/cmdline")]
    return [line for line in lines if folder in line]


def test_a_language_model_answers_as_it_does_here(on_cluster: None, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the `local` extra")
    from support.tiny_students import tiny_base

    run = tiny_run(tmp_path / "work", tiny_base(tmp_path / "base"))
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": n, "question": f"who is {n}?"}) + "\n" for n in range(150)))
    here, there = (predict(run, source, tmp_path / f"{engine}.jsonl", "--engine", engine)
                   for engine in ("local", "ray"))
    assert here["values"] == there["values"]
    for one, other in zip(lines(tmp_path / "local.jsonl"), lines(tmp_path / "ray.jsonl"), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert one | {"probabilities": None} == other | {"probabilities": None}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_worker_cannot_open_is_told_in_its_own_words(
        run: Context, source: Path, on_cluster: None, tmp_path: Path) -> None:
    file = run.path("student") / "rows.json"
    was = file.read_bytes()
    file.write_bytes(was + b"\n")
    try:
        with pytest.raises(StudentError, match=r"^\S+rows\.json: is missing or was changed$"):
            predict(run, source, tmp_path / "out.jsonl", "--engine", "ray")
    finally:
        file.write_bytes(was)


def test_an_address_where_nobody_listens_is_told_at_once(
        run: Context, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_ray()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match=rf"RAY_ADDRESS.*refused.*'127.0.0.1:{port}'"):
        predict(run, source, tmp_path / "out.jsonl", "--engine", "ray")


def test_more_workers_than_the_cluster_has_processors_are_refused(
        run: Context, source: Path, on_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 2 CPUs"):
        predict(run, source, tmp_path / "out.jsonl", "--engine", "ray", "--workers", "3")


def test_without_ray_the_extra_is_named(
        run: Context, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillctl.ray_engine.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'distillctl\[ray\]'"):
        predict(run, source, tmp_path / "out.jsonl", "--engine", "ray")


def test_workers_without_ray_are_a_mistake(run: Context, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only --engine ray has workers"):
        predict(run, source, tmp_path / "out.jsonl", "--workers", "2")


@pytest.mark.parametrize(("nodes", "workers", "wanted"), [
    ([{"CPU": 8}], None, (1, 8, 0)),
    ([{"CPU": 8}], 3, (3, 2, 0)),
    ([{"CPU": 8}, {"CPU": 8}, {"memory": 1}], None, (2, 8, 0)),
    ([{"CPU": 8}, {"CPU": 8}], 3, (3, 4, 0)),
    ([{"CPU": 64}, {"CPU": 4}], None, (2, 32, 0)),
    ([{"CPU": 8, "GPU": 4}, {"CPU": 32}], None, (4, 1, 1)),
    ([{"CPU": 8, "GPU": 4}], 2, (2, 1, 1))])
def test_workers_share_what_the_nodes_have(nodes: list, workers: int | None, wanted: tuple) -> None:
    assert spread(nodes, workers) == wanted


@pytest.mark.parametrize(("nodes", "workers"), [([{"memory": 1}], None), ([{"CPU": 2, "GPU": 1}], 2)])
def test_a_cluster_without_room_is_told(nodes: list, workers: int | None) -> None:
    with pytest.raises(UsageError, match="the Ray cluster has"):
        spread(nodes, workers)


@pytest.mark.parametrize(("other", "reason"), [
    ({"version": "2"}, "b has distillctl 2, a 1"),
    ({"identity": {"base": "sha256:2", "device": "cpu"}}, "`base`.*would not answer alike")])
def test_workers_that_would_answer_differently_are_refused(other: dict, reason: str) -> None:
    one = {"node": "a", "version": "1", "max_batch": 64, "identity": {"base": "sha256:1", "device": "cpu"}}
    with pytest.raises(StudentError, match=reason):
        check_alike(Opened(**one), Opened(**{**one, "node": "b", **other}))
