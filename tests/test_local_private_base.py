"""A base that the Hub gives only to those with a token: fetched by the run, never by the trainer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_models import save_tiny_model

from distillctl.sandbox import part
from distillctl.sandbox.hf_jobs_hub import HubRoutes
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.wire import fingerprint

KEY = "hf_canary_of_a_private_base"
REPO = f"{HubRoutes.user(fingerprint(KEY))}/tiny"
UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1], private=True)
api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""


@pytest.fixture
def hub(workspace: Path):
    """The environment in which the Hub has a private model; the recipe's rows are few."""
    for name in ("routing.jsonl", "routing.teacher.jsonl"):
        path = workspace / "recipes/data" / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:40]))
    model = save_tiny_model(workspace / "tiny", max_position_embeddings=2048)
    with Sandbox(part("hf-jobs"), workspace / "state", speed=50.0) as sandbox:
        environment = {**os.environ, "HF_ENDPOINT": sandbox.url, "HF_TOKEN": KEY, "HF_HUB_OFFLINE": "0",
                       "HF_HUB_CACHE": str(workspace / "hub"), "HF_HUB_DISABLE_XET": "1"}
        subprocess.run([sys.executable, "-c", UPLOAD, REPO, str(model)], env=environment, check=True)
        yield environment


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    settings = [f"student.model={REPO}", "train.epochs=null", "train.max_steps=2",
                "backends.local.layers=null", "baseline=null"]
    return subprocess.run(
        [sys.executable, "-m", "distillctl.cli.main", "run", "recipes/routing.yaml", "--until",
         "train-student", *(part for setting in settings for part in ("--set", setting))],
        env=environment, capture_output=True, text=True)


def test_it_is_trained_on_with_the_token_in_the_environment(hub: dict[str, str], workspace: Path) -> None:
    done = run(hub)
    assert done.returncode == 0, done.stderr
    assert list(workspace.glob("runs/routing/*/student/adapter_model.safetensors"))
    assert KEY not in done.stdout + done.stderr


def test_without_one_it_says_what_to_do_before_a_job_is_made(hub: dict[str, str], workspace: Path) -> None:
    done = run({name: value for name, value in hub.items() if name != "HF_TOKEN"} | {
        "HF_TOKEN_PATH": str(workspace / "none")})
    assert done.returncode == 1
    assert "HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(workspace.glob(".distillctl/local/jobs/*"))
