"""The suite that every backend passes; `docs/backends.md` shows how.

A backend's test file subclasses `BackendContract`, or `hosted.HostedBackendContract` where its
capabilities say that data leaves the machine, names the class under test and fills in the hooks (class
methods). Nothing is skipped: what does not apply to a backend follows from what it declares. Every test
starts from an empty folder; one job is trained for all tests that need an ended one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
from pydantic import ValidationError

from distillctl import registry
from distillctl.backend import (
    TERMINAL,
    Backend,
    BackendEnv,
    JobHandle,
    JobState,
    Rejected,
    Snapshot,
    Staged,
    StudentRef,
    TrainJob,
    Unreachable,
)
from distillctl.errors import DistillctlError
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.store.files import digest_file, digest_tree
from distillctl.students import NEVER_IN_A_STUDENT
from distillctl.testing.examples import example_job, example_requests
from distillctl.testing.lab import CANARY, Lab, Trained, ask, children, ours, through_json
from distillctl.types import Predictor

HEAVY = ("torch", "transformers", "trl", "sklearn", "scipy", "datasets", "openai", "anthropic", "together",
         "google.genai", "google.cloud.storage", "huggingface_hub", "httpx", "requests")
ESCAPES = ("../escaped", "a/../../escaped", "..", "/{folder}/escaped", "a\0b", "")


class BackendContract:
    """What every backend must do. Subclass it as `Test…` and set `backend`."""

    backend: ClassVar[type[Backend]]
    hosted: ClassVar[bool] = False  # HostedBackendContract says True
    model: ClassVar[str] = "smollm2-135m"
    train: ClassVar[TrainSpec] = TrainSpec(max_steps=2, batch_size=4)
    patience_s: ClassVar[float] = 120.0  # the longest that a job of this suite may take

    # --- hooks ---

    @classmethod
    def settings(cls, provider: Any) -> Mapping[str, Any]:
        """The `backends.<name>` block to test with."""
        return {}

    @classmethod
    def make_provider(cls, folder: Path) -> AbstractContextManager[Any]:
        """Start what stands in for the provider, keeping its state in `folder`."""
        return nullcontext()

    @classmethod
    def make_job(cls, folder: Path, kind: str) -> TrainJob:
        """A small job for a task of `kind`."""
        return example_job(folder, kind, cls.model, cls.train)

    # --- fixtures ---

    @classmethod
    def open_backend(cls, folder: Path, provider: Any, secret: str = CANARY) -> Backend:
        env = BackendEnv(folder / "workspace", lambda name: secret, time.time)
        return cls.backend(cls.backend.Settings.model_validate(dict(cls.settings(provider))), env)

    @classmethod
    @contextmanager
    def make_lab(cls, folder: Path) -> Iterator[Lab]:
        with cls.make_provider(folder / "provider") as provider:
            kind = sorted(cls.backend.capabilities.task_kinds)[0]
            yield Lab(folder, cls.open_backend(folder, provider), cls.make_job(folder, kind), provider)

    @pytest.fixture
    def lab(self, tmp_path: Path) -> Iterator[Lab]:
        with self.make_lab(tmp_path) as lab:
            yield lab

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
        with cls.make_lab(tmp_path_factory.mktemp("trained")) as lab:
            yield cls.train_in(lab)

    @classmethod
    def train_in(cls, lab: Lab) -> Trained:
        """Train the lab's job to its end and collect its student."""
        handle = lab.submit()
        snapshots = cls.poll_to_end(lab.backend, handle)
        assert snapshots[-1].state == "succeeded", snapshots[-1]
        into = lab.folder / "student"
        into.mkdir()
        return Trained(lab, handle, snapshots, into, lab.backend.collect(handle, into))

    @classmethod
    def poll_to_end(cls, backend: Backend, handle: JobHandle) -> list[Snapshot]:
        """Every snapshot up to the terminal one."""
        until = time.monotonic() + cls.patience_s
        snapshots = [backend.poll(handle, None)]
        while snapshots[-1].state not in TERMINAL:
            assert time.monotonic() < until, f"no end after {cls.patience_s} s: {snapshots[-1]}"
            time.sleep(0.05)
            snapshots.append(backend.poll(handle, snapshots[-1].cursor))
        return snapshots

    # --- the class ---

    def test_fits_the_contract(self) -> None:
        assert registry.check(self.backend, self.backend.name) == []

    def test_is_found_through_its_entry_point(self) -> None:
        assert registry.load(self.backend.name) is self.backend

    def test_settings_aside_are_settings(self) -> None:
        assert self.backend.capabilities.settings_aside <= set(self.backend.Settings.model_fields)

    def test_takes_the_suite_that_its_capabilities_ask_for(self) -> None:
        assert self.hosted == self.backend.capabilities.data_leaves_machine

    def test_importing_it_is_light(self) -> None:
        code = ("import sys; before = set(sys.modules)\n"  # some packages load a part of theirs at start-up
                f"import {self.backend.__module__}\n"
                f"print(*[name for name in {HEAVY!r} if name in sys.modules and name not in before])")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        assert done.stdout.split() == []

    def test_settings_refuse_an_unknown_key(self, lab: Lab) -> None:
        with pytest.raises(ValidationError):
            self.backend.Settings.model_validate({**self.settings(lab.provider), "no_such_setting": 1})

    def test_the_constructor_touches_nothing(self, lab: Lab) -> None:
        before = digest_tree(lab.folder)
        self.open_backend(lab.folder, lab.provider)
        assert digest_tree(lab.folder) == before
        assert not (lab.folder / "workspace").exists()

    # --- preflight and stage ---

    def test_preflight_finds_nothing_wrong_with_a_good_job(self, lab: Lab) -> None:
        assert lab.backend.preflight(lab.job).problems == ()

    def test_preflight_writes_nothing(self, lab: Lab) -> None:
        before = ours(lab)
        lab.backend.preflight(lab.job)
        assert ours(lab) == before

    def test_preflight_says_where_data_goes(self, lab: Lab) -> None:
        sends_to = lab.backend.preflight(lab.job).sends_to
        assert bool(sends_to) == self.backend.capabilities.data_leaves_machine

    def test_preflight_refuses_other_kinds_of_task(self, lab: Lab) -> None:
        for kind in {"classification", "structured", "text"} - self.backend.capabilities.task_kinds:
            assert lab.backend.preflight(self.make_job(lab.folder / kind, kind)).problems, kind

    def test_staging_twice_gives_the_same_and_is_json(self, lab: Lab) -> None:
        first, second = lab.stage(), lab.stage()
        assert first == second == Staged(through_json(first.data), first.cost_usd)

    # --- submit, find, poll ---

    def test_a_handle_survives_json(self, trained: Trained) -> None:
        assert JobHandle.from_json(through_json(trained.handle.as_json())) == trained.handle

    def test_a_handle_names_its_backend_and_time(self, trained: Trained) -> None:
        assert trained.handle.backend == self.backend.name
        assert trained.handle.created_at > 1_600_000_000

    def test_find_gives_the_one_job_of_a_token(self, trained: Trained) -> None:
        found = trained.lab.backend.find(trained.handle.token)
        assert [handle.job_id for handle in found] == [trained.handle.job_id]
        assert found[0].token == trained.handle.token

    def test_a_found_handle_serves_like_the_first(self, trained: Trained) -> None:
        found = trained.lab.backend.find(trained.handle.token)[0]
        assert trained.lab.backend.poll(found, None).state == "succeeded"

    def test_find_gives_nothing_for_an_unknown_token(self, trained: Trained) -> None:
        assert trained.lab.backend.find(new_token()) == []

    def test_find_compares_whole_tokens(self, trained: Trained) -> None:
        assert trained.lab.backend.find(trained.handle.token[:-1]) == []

    def test_poll_speaks_the_core_s_words(self, trained: Trained) -> None:
        assert {snapshot.state for snapshot in trained.snapshots} <= set(get_args(JobState))
        assert all(snapshot.raw for snapshot in trained.snapshots)

    def test_an_end_is_seen_again(self, trained: Trained) -> None:
        assert trained.lab.backend.poll(trained.handle, None).state == "succeeded"

    def test_events_keep_their_keys(self, trained: Trained) -> None:
        """A key is what lets the core drop repeats, so two looks give the same keys, each once."""
        looks = [[event.key for event in trained.lab.backend.poll(trained.handle, None).events]
                 for _ in range(2)]
        assert looks[0] == looks[1]
        assert len(set(looks[0])) == len(looks[0])

    def test_another_shell_can_follow_the_job(self, trained: Trained) -> None:
        other = self.open_backend(trained.lab.folder, trained.lab.provider)
        handle = JobHandle.from_json(through_json(trained.handle.as_json()))
        assert other.poll(handle, None).state == "succeeded"

    def test_a_job_that_is_not_there_is_lost(self, trained: Trained) -> None:
        gone = replace(trained.handle, job_id=new_token(), token=new_token())
        assert trained.lab.backend.poll(gone, None).state == "lost"

    # --- cancel ---

    def test_cancelling_twice_ends_the_job_once(self, lab: Lab) -> None:
        handle = lab.submit()
        lab.backend.cancel(handle)
        lab.backend.cancel(handle)
        assert self.poll_to_end(lab.backend, handle)[-1].state in ("cancelled", "succeeded")

    def test_cancelling_after_the_end_changes_nothing(self, trained: Trained) -> None:
        trained.lab.backend.cancel(trained.handle)
        assert trained.lab.backend.poll(trained.handle, None).state == "succeeded"

    # --- collect ---

    def test_collecting_twice_gives_the_same(self, trained: Trained, tmp_path: Path) -> None:
        assert trained.lab.backend.collect(trained.handle, trained.into) == trained.student
        assert trained.lab.backend.collect(trained.handle, tmp_path) == trained.student
        assert digest_tree(tmp_path) == digest_tree(trained.into)

    def test_a_reference_survives_json(self, trained: Trained) -> None:
        assert StudentRef.from_json(through_json(trained.student.as_json())) == trained.student

    def test_a_reference_names_its_files_by_digest(self, trained: Trained) -> None:
        student = trained.student
        root = trained.into / (student.path or ".")
        assert {name: digest_file(root / name) for name in student.files} == student.files
        assert bool(student.files) == (student.kind != "hosted")

    def test_a_student_holds_no_pickle(self, trained: Trained) -> None:
        for path in trained.into.rglob("*"):
            assert path.suffix.lower() not in NEVER_IN_A_STUDENT, path
            assert not path.is_symlink(), path
            if path.is_file():
                start = path.read_bytes()[:4]
                assert not (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"), path
                assert start != b"PK\x03\x04", path  # what torch.save writes

    def test_an_unfinished_job_has_no_student(self, trained: Trained, tmp_path: Path) -> None:
        gone = replace(trained.handle, job_id=new_token(), token=new_token())
        with pytest.raises((DistillctlError, Unreachable)):
            trained.lab.backend.collect(gone, tmp_path)

    # --- open ---

    def test_a_student_answers_every_prompt_in_order(self, trained: Trained) -> None:
        with self.open_student(trained) as predictor:
            together, alone = asyncio.run(ask(predictor, example_requests(trained.lab.job.task)))
        assert [answer.output for answer in together] == [answer.output for answer in alone]
        assert all(answer.output is not None or answer.error for answer in together)

    def test_label_probabilities_are_given_as_declared(self, trained: Trained) -> None:
        labels = trained.lab.job.task.labels
        if not (self.backend.capabilities.label_probabilities and labels):
            return
        with self.open_student(trained) as predictor:
            together, _ = asyncio.run(ask(predictor, example_requests(trained.lab.job.task)))
        for answer in together:
            assert set(answer.label_logprobs) == set(labels)
            shares = {label: 2.718281828459045 ** value for label, value in answer.label_logprobs.items()}
            assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
            assert answer.output == max(shares, key=shares.get)

    def test_the_untrained_model_answers_where_declared(self, trained: Trained) -> None:
        if not self.backend.capabilities.untrained_answers:
            return
        base = str(trained.student.data.get("base_model", trained.student.model))
        untrained = StudentRef(self.backend.name, "model" if trained.student.files else "hosted", base)
        task = trained.lab.job.task
        with trained.lab.backend.open(untrained, trained.into, task, EvaluateSpec()) as predictor:
            together, _ = asyncio.run(ask(predictor, example_requests(task)))
        assert all(answer.output is not None or answer.error for answer in together)

    def test_an_identity_is_json_and_stays(self, trained: Trained) -> None:
        identities = []
        for _ in range(2):
            with self.open_student(trained) as predictor:
                identities.append(through_json(dict(predictor.identity)))
                asyncio.run(predictor.aclose())
        assert identities[0] == identities[1]

    def test_open_ends_what_it_started(self, trained: Trained) -> None:
        before = children()
        with self.open_student(trained) as predictor:
            asyncio.run(ask(predictor, example_requests(trained.lab.job.task)[:1]))
        assert children() <= before

    def test_open_ends_what_it_started_after_an_error(self, trained: Trained) -> None:
        before = children()
        with pytest.raises(KeyError), self.open_student(trained):
            raise KeyError("of the caller's own")
        assert children() <= before

    def test_a_damaged_student_is_refused(self, trained: Trained, tmp_path: Path) -> None:
        for name in trained.student.files:
            copy = tmp_path / "copy"
            shutil.copytree(trained.into, copy)
            path = copy / (trained.student.path or ".") / name
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
            with pytest.raises(DistillctlError), trained.lab.backend.open(
                    trained.student, copy, trained.lab.job.task, EvaluateSpec()):
                pass
            shutil.rmtree(copy)

    def test_a_reference_that_leaves_its_folder_is_refused(self, trained: Trained, tmp_path: Path) -> None:
        if trained.student.kind == "hosted":
            return
        shutil.copytree(trained.into / (trained.student.path or "."), tmp_path / "outside")
        (tmp_path / "inside").mkdir()
        with pytest.raises(DistillctlError), trained.lab.backend.open(
                replace(trained.student, path="../outside"), tmp_path / "inside", trained.lab.job.task,
                EvaluateSpec()):
            pass

    def open_student(self, trained: Trained) -> AbstractContextManager[Predictor]:
        return trained.lab.backend.open(trained.student, trained.into, trained.lab.job.task, EvaluateSpec())

    # --- names and secrets ---

    @pytest.mark.parametrize("name", ESCAPES)
    def test_names_do_not_leave_the_workspace(self, lab: Lab, tmp_path: Path, name: str) -> None:
        name = name.replace("/{folder}", str(tmp_path))
        into = lab.folder / "into"
        into.mkdir()
        before = ours(lab)
        handle = JobHandle(self.backend.name, name, name, created_at=1.0)
        assert lab.backend.find(name) == []
        assert lab.backend.poll(handle, None).state == "lost"
        with suppress(DistillctlError):
            lab.backend.cancel(handle)
        with pytest.raises(DistillctlError):
            lab.backend.collect(handle, into)
        if not self.backend.capabilities.data_leaves_machine:
            with pytest.raises(Rejected):
                lab.backend.submit(lab.job, lab.stage(), name)
        assert {path: digest for path, digest in ours(lab).items()
                if not path.startswith(("workspace/", "into/"))} == before

    def test_a_secret_is_written_nowhere(self, trained: Trained) -> None:
        with self.open_student(trained) as predictor:
            said = [trained.handle.as_json(), trained.student.as_json(), dict(predictor.identity),
                    *map(str, trained.snapshots)]
            asyncio.run(predictor.aclose())
        assert CANARY not in json.dumps(said)
        leaks = [path for path in trained.lab.folder.rglob("*")
                 if path.is_file() and CANARY.encode() in path.read_bytes()]
        assert leaks == []
