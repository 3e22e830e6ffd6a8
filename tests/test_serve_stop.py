"""A second signal to `distillctl serve` ends it at once, whatever computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.finished import linear_run

from distillctl.context import Context

pytest.importorskip("uvicorn", reason="needs the `serve` extra")
from support.serving import post

CHILD = """
import asyncio, sys, time
from contextlib import contextmanager
from pathlib import Path
from support.finished import reopened
from distillctl.api import Workspace
from distillctl.collect import CollectOptions
from distillctl.serve.server import Server
from distillctl.using import Student

class Computing:
    identity, max_batch, replayed = {}, 8, False

    async def answer(self, requests):
        print("computing", flush=True)
        await (asyncio.sleep(60) if HOSTED else asyncio.to_thread(time.sleep, 60))

    async def aclose(self): ...

@contextmanager
def open_student():
    try:
        yield Student(run.rundir.name, run.task, Computing(), None, CollectOptions(max_cost=lambda _: 0.5),
                      run.ledger if HOSTED else None)
    finally:
        print("closed", flush=True)

root, HOSTED = Path(sys.argv[1]), sys.argv[2] == "hosted"
run = reopened(Workspace(root).find_run("routing"), root)
with open_student() as student:
    server = Server(student)
    print(server.url, flush=True)
    server.run()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return linear_run(tmp_path_factory.mktemp("workspace"))


@pytest.mark.parametrize("where", ["here", "hosted"])
def test_a_second_signal_does_not_wait_for_the_model(run: Context, where: str) -> None:
    """What a hosted student's backend started is stopped first, and its call may have been billed."""
    before = run.ledger.spent(run.run_id).at_most
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run.workspace.root), where], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)})
    try:
        url = child.stdout.readline().strip()
        client = threading.Thread(target=_ask, args=(url,))
        client.start()
        assert child.stdout.readline() == "computing\n"
        child.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=10)
    finally:
        child.kill()
    client.join()
    assert (child.returncode, err) == (1, "")
    assert out == ("closed\n" if where == "hosted" else "")
    assert run.ledger.spent(run.run_id).at_most - before == (0.5 if where == "hosted" else 0)


def _ask(url: str) -> None:
    with suppress(OSError, ValueError):  # it is cut off, with a plain 500 or without
        post(url, {"model": "routing", "messages": [{"role": "user", "content": "x"}]})
