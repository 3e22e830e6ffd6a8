"""What runs in the job: the local backend's trainer, its story as log lines, its student to a private repo.

`python -m distillctl_hf_jobs.job FOLDER --to NAMESPACE/NAME --name FOLDER'S-NAME`. HF_TOKEN holds the token;
it stands in no argument, no file and no line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from distillctl_local.process import DEFAULTS
from distillctl_local.result import kind_of
from distillctl_local.settings import LocalSettings
from distillctl_local.trainer import Events
from pydantic import TypeAdapter

from distillctl.backend import StudentRef
from distillctl.context import machine
from distillctl.errors import BackendError, DataError, DistillctlError, Problem
from distillctl.job_answers import FILE as ANSWERS
from distillctl.job_answers import answer_all, write_answers
from distillctl.recipe.models import EvaluateSpec, TaskSpec
from distillctl.store.files import digest_file, read_json, read_jsonl, write_json
from distillctl.task import build_task
from distillctl.types import JSON
from distillctl_hf_jobs.bundle import BASE, DEV, JOB, PROMPTS, ROWS
from distillctl_hf_jobs.logs import event_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RESULT = "distillctl.json"


def main(arguments: list[str]) -> int:
    """Train and push. Returns the exit code: 0 done, 1 failed (the log says why)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", required=True)
    parser.add_argument("--name", required=True)
    asked = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch)
            job = lay_out(asked.folder, work)
            outcome = train(work)
            answers = answer(work, job, outcome["files"])
            push(work, asked.to, outcome["files"], {
                "model": job["model"], "revision": job["revision"], "folder": asked.name, "rows": job["rows"],
                "seconds": outcome["seconds"], "files": {**outcome["files"], **answers}})
    except DistillctlError as error:
        print(f"distillctl: {error}", flush=True)  # noqa: T201
        return 1
    return 0


def lay_out(folder: Path, work: Path) -> dict[str, JSON]:
    """The trainer's folder from what is mounted; the job as it was sent."""
    for name in (ROWS, DEV, PROMPTS):
        if (folder / name).exists():
            shutil.copyfile(folder / name, work / name)
    job = read_json(folder / JOB)
    if digest_file(work / ROWS) != job["digest"]:
        raise DataError(Problem("the training rows are not those of this job", where=str(folder / ROWS)))
    own = job["model"].startswith(f"{BASE}/")
    write_json(work / JOB, {**job, "model": str(folder / job["model"]) if own else job["model"]})
    return job


def train(work: Path) -> dict[str, JSON]:
    """Run the trainer and tell its events as they come; its outcome. Raises BackendError where it failed."""
    story, told = work / "events.jsonl", 0
    trainer = subprocess.Popen([sys.executable, "-m", "distillctl_local.trainer", str(work)],
                               stdin=subprocess.DEVNULL, env={**DEFAULTS, **os.environ})
    while True:
        ended = trainer.poll() is not None  # before the story is read: it may grow in between
        told = _tell(story, told)
        if ended:
            break
        time.sleep(0.2)
    done = work / "done.json"
    if not done.exists():
        raise BackendError(f"the trainer died with exit code {trainer.returncode} (out of memory?)")
    outcome = read_json(done)
    if not outcome["ok"]:
        raise BackendError(outcome["message"])
    return outcome


def answer(work: Path, job: dict[str, JSON], student_files: dict[str, str]) -> dict[str, str]:
    """Let the student, and the untrained model where the recipe compares it, answer the prompts that came
    along; the digest of the file, by name. Empty where none came. student_files: digests by name."""
    if not (work / PROMPTS).exists():
        return {}
    from distillctl_local.predictor import open_local

    here = read_json(work / JOB)
    task, how = build_task(TypeAdapter(TaskSpec).validate_python(job["task"])), EvaluateSpec.model_validate(
        job["evaluate"])
    settings = LocalSettings.model_validate(job["settings"])
    data = {"revision": here["revision"]}
    trained = StudentRef("local", kind_of(student_files), here["model"], "result", student_files, data)
    prompts = list(read_jsonl(work / PROMPTS))
    asked = {"student": (trained, prompts)}
    if how.base:
        asked["base"] = (StudentRef("local", "model", here["model"], data=data),
                         [row for row in prompts if row["split"] == "test"])
    found = {}
    for who, (student, rows) in asked.items():
        with open_local(student, work, task, how, device=settings.device, precision=settings.precision,
                        threads=settings.threads) as predictor:
            found[who] = answer_all(predictor, rows, how, machine(), timed=who == "student")
        _say(work, f"the {who} answered {len(rows)} prompts")
    write_answers(work / ANSWERS, found)
    return {ANSWERS: digest_file(work / ANSWERS)}


def push(work: Path, repo: str, student_files: Iterable[str], result: dict[str, JSON]) -> None:
    """The student's files and its result as one commit in a private model repo. A repo that has one is left
    as it is: the first of several jobs with one token is the one that counts."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"],
                library_name="distillctl")
    api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
    if not _may_push(api, repo):
        return
    write_json(work / RESULT, result)
    files = {name: work / "result" / name for name in student_files} | {RESULT: work / RESULT}
    if ANSWERS in result["files"]:
        files[ANSWERS] = work / ANSWERS
    api.create_commit(repo, [CommitOperationAdd(name, path) for name, path in files.items()],
                      commit_message="A student, trained by distillctl")
    _say(work, f"pushed to {repo}")


def _say(work: Path, message: str) -> None:
    """Add a line to the trainer's story, and tell it."""
    events = Events(work / "events.jsonl")
    before = (work / "events.jsonl").stat().st_size
    events.tell(message)
    _tell(work / "events.jsonl", before)


def _may_push(api: HfApi, repo: str) -> bool:
    info = api.repo_info(repo, repo_type="model")
    if info.private is not True:
        raise BackendError(f"{repo} is not private, so the student is not pushed there")
    return RESULT not in [file.rfilename for file in info.siblings or ()]


def _tell(story: Path, start: int) -> int:
    """Print the whole lines of the story from byte `start` on; where to go on."""
    if not story.exists():
        return start
    with story.open("rb") as file:
        file.seek(start)
        text = file.read()
    whole = text[:text.rfind(b"\n") + 1]
    for line in whole.splitlines():
        print(event_line(json.loads(line)), flush=True)  # noqa: T201
    return start + len(whole)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
