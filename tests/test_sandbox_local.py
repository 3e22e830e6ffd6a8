"""Behind a sandbox, the packaged model is really trained by the local backend, and really answers."""

import json
import time

import openai
import pytest

from distillctl.recipe.models import TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.store.files import read_jsonl
from distillctl.testing.examples import example_job, example_requests

MODEL = "gpt-4.1-mini-2025-04-14"


@pytest.mark.slow
def test_the_packaged_model_learns_what_was_uploaded(tmp_path):
    job = example_job(tmp_path, "classification", "smollm2-135m", TrainSpec())
    rows = [{"messages": [*row["messages"], {"role": "assistant", "content": row["completion"]}]}
            for row in read_jsonl(job.train_file)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with Sandbox(part("openai"), tmp_path / "state", tuner="local", speed=1000.0) as sandbox, openai.OpenAI(
            api_key="k", base_url=f"{sandbox.url}/v1", max_retries=0) as client:
        file = client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
        made = client.fine_tuning.jobs.create(
            model=MODEL, training_file=file.id,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
        until = time.monotonic() + 240
        while made.status not in ("succeeded", "failed") and time.monotonic() < until:
            time.sleep(0.5)
            made = client.fine_tuning.jobs.retrieve(made.id)
        assert made.status == "succeeded", made.error
        steps = [event for event in client.fine_tuning.jobs.list_events(made.id) if event.type == "metrics"]
        assert steps and "training loss" in steps[0].message
        said = [client.chat.completions.create(
            model=made.fine_tuned_model, messages=list(request.messages), logprobs=True,
            top_logprobs=5).choices[0] for request in example_requests(job.task)]
    assert [choice.message.content for choice in said] == ["cat", "dog"] * 3
    assert all(choice.logprobs.content[0].top_logprobs for choice in said)
