"""`backend: hf-jobs`: the local backend's trainer on rented hardware, through Hugging Face Jobs.

The API: https://huggingface.co/docs/huggingface_hub/guides/jobs. A job carries its token in a label, where
`find` looks for it, and its student goes to a model repo of that name.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from distillctl_local.backend import LocalBackend
from distillctl_local.result import MODEL_FILES, MODEL_WEIGHTS, kind_of
from distillctl_local.safety import CONFIG, WEIGHTS

from distillctl import job_answers
from distillctl.backend import (
    API_VERSION,
    Ambiguous,
    BackendEnv,
    Capabilities,
    JobHandle,
    JobState,
    Preflight,
    Rejected,
    Snapshot,
    Staged,
    StudentRef,
    TrainJob,
    Unreachable,
)
from distillctl.errors import BackendError, Problem, StudentError
from distillctl.hosted import creating, unreachable
from distillctl.recipe.models import EvaluateSpec
from distillctl.store.files import digest_file, read_json, safe_join, write_json
from distillctl.task import Task
from distillctl.types import Predictor
from distillctl_hf_jobs.bundle import BASE, MOUNT, REQUIREMENTS, is_folder, make_bundle, result_of
from distillctl_hf_jobs.client import Failed, Service, account, is_name, raise_for_account
from distillctl_hf_jobs.hardware import flavors
from distillctl_hf_jobs.logs import last_words, new_events
from distillctl_hf_jobs.repo import put_files
from distillctl_hf_jobs.settings import HfJobsSettings

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

TOKEN = "distillctl-token"
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
DATA_REPO = "distillctl-data"
RESULT = "distillctl.json"
_MOST_BYTES = {WEIGHTS: 16 * 2**30, CONFIG: 2**20, RESULT: 2**20, job_answers.FILE: 2**30,
               **dict.fromkeys(MODEL_FILES, 2**27), MODEL_WEIGHTS: 64 * 2**30}
_STATES: dict[str, JobState] = {
    "SCHEDULING": "queued", "RUNNING": "running", "COMPLETED": "succeeded", "ERROR": "failed",
    "CANCELED": "cancelled", "DELETED": "lost"}
_ENDED = frozenset({"succeeded", "failed", "cancelled"})


class HfJobsBackend:
    """Trains at Hugging Face; the student comes home and answers here."""

    name: ClassVar[str] = "hf-jobs"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification", "structured", "text"}), label_probabilities=True,
        data_leaves_machine=True, reports_cost=True, student_is_local=True, untrained_answers=True,
        training_version=LocalBackend.capabilities.training_version, answers_setting="answer",
        settings_aside=frozenset({"timeout", "api_key_env", "request_timeout"}))
    Settings: ClassVar[type[HfJobsSettings]] = HfJobsSettings

    def __init__(self, settings: HfJobsSettings, env: BackendEnv) -> None:
        self._settings = settings
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        from distillctl_hf_jobs.preflight import examine

        return examine(job, self._model(job), self._settings, self._env)

    def stage(self, job: TrainJob) -> Staged:
        model, trainer = self._model(job), self._settings.trainer
        bundle = make_bundle(job, model, trainer.model_dump(mode="json"), trainer.watches,
                             self._env.workspace / "bundle")
        if is_folder(model):
            write_json(self._base(bundle.folder), str(Path(model).expanduser().resolve()))
        with Service(self._settings, self._env) as service:
            namespace = self._namespace(service)
            repo = f"{namespace}/{DATA_REPO}"
            revision = put_files(service, self._settings, repo, {
                f"jobs/{bundle.folder}/{name}": path for name, path in bundle.files.items()})
        return Staged({"namespace": namespace, "repo": repo, "revision": revision, "folder": bundle.folder})

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        if not is_name(token):
            raise Rejected(f"{token!r} is no name for a job")
        namespace = str(staged.data["namespace"])
        with (creating(lambda failed: f"{self._settings.host} says: {failed}"),
              Service(self._settings, self._env) as service):
            made = service.call(service.api.run_job, namespace=namespace,
                                **self._request(job, staged, namespace, token, str(service.api.token)))
        handle = self._handle(made, token)
        if handle is None:
            raise Ambiguous("the reply names no job")
        return handle

    def find(self, token: str) -> list[JobHandle]:
        if not is_name(token):
            return []
        with Service(self._settings, self._env) as service:
            # without the service's own filter by label: one that does not know it hides nothing from us
            listed = service.read(service.api.list_jobs, namespace=self._namespace(service))
        if listed is None:
            raise Unreachable("the namespace's jobs cannot be listed")
        found = {handle.job_id: handle for job in listed if (job.labels or {}).get(TOKEN) == token
                 and (handle := self._handle(job, token))}
        return sorted(found.values(), key=lambda handle: (handle.created_at, handle.job_id))

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        with Service(self._settings, self._env) as service:
            job = self._job(service, handle)
            if job is None:
                ours = account(self._settings, self._env)
                return Snapshot("lost", "404", f"{self._settings.host} has no job {handle.job_id} for "
                                f"account {ours}; it was made with {handle.account}", cursor=cursor)
            word = job.status.stage
            word = word if isinstance(word, str) and word else "none"
            state = _STATES.get(word, "unknown")
            lines: list[str] = []
            if state == "running" or state in _ENDED:  # before, there is nothing that could write
                lines = service.read(service.api.fetch_job_logs, job_id=handle.job_id,
                                     namespace=handle.data["namespace"]) or []
            cost = self._cost(service, job) if state in _ENDED else None
        events, cursor = new_events(lines, cursor)
        said = job.status.message if isinstance(job.status.message, str) else ""
        if state == "failed" and (ours := last_words(lines)):
            said = f"{said}; the end of its log: {ours}" if said else ours
        return Snapshot(state, word, said, events, cursor, cost)

    def cancel(self, handle: JobHandle) -> None:
        if not _is_job(handle):
            return
        with Service(self._settings, self._env) as service:
            try:
                service.call(service.api.cancel_job, job_id=handle.job_id,
                             namespace=str(handle.data["namespace"]))
            except Failed as failed:
                raise_for_account(failed, self._settings)
                if failed.status not in (400, 404, 409, 422):  # those: it has ended, or is not there
                    raise unreachable(failed) from failed

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        repo = f"{handle.data.get('namespace')}/{_student_repo(handle.token)}"
        missing = BackendError(Problem("there is no student to collect", where=self._settings.host,
                                       value=handle.job_id))
        if not _is_job(handle) or not is_name(handle.token):
            raise missing
        fetched = self._env.workspace / "fetched" / handle.token
        with Service(self._settings, self._env) as service:
            info = service.read(service.api.repo_info, repo, repo_type="model")
            if info is None or not isinstance(info.sha, str) or not is_name(info.sha):
                raise missing

            def fetch(name: str) -> Path:
                if not service.download(repo, name, info.sha, fetched / name, _MOST_BYTES[name]):
                    raise missing
                return fetched / name

            result = result_of(fetch(RESULT).read_text(encoding="utf-8", errors="replace"))
            names = set(result["files"])
            kind = kind_of(names - {job_answers.FILE})
            if kind is None:
                raise StudentError(Problem("the repo's student is neither an adapter nor a model", where=repo,
                                           value=sorted(names)[:20]))
            found = {name: digest_file(fetch(name)) for name in sorted(names)}
        student = self._student(fetched, kind, result, found, repo, info.sha)
        folder = into / (student.path or ".")
        folder.mkdir(exist_ok=True)
        for name in student.files:
            shutil.copyfile(fetched / name, folder / name)
        for name in student.answers:
            shutil.copyfile(fetched / name, into / name)
        shutil.rmtree(fetched, ignore_errors=True)
        return student

    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> AbstractContextManager[Predictor]:
        from distillctl_local.predictor import open_local

        trainer = self._settings.trainer
        return open_local(student, folder, task, how, device="auto", precision=trainer.precision,
                          threads=trainer.threads)

    # --- the job ---

    def _model(self, job: TrainJob) -> str:
        return self._settings.model or job.model

    def _namespace(self, service: Service) -> str:
        if self._settings.namespace is not None:
            return self._settings.namespace
        who = service.read(service.api.whoami) or {}
        if not isinstance(who.get("name"), str):
            raise Unreachable("the service does not say whose token this is")
        return who["name"]

    def _request(self, job: TrainJob, staged: Staged, namespace: str, token: str,
                 secret: str) -> dict[str, Any]:
        from huggingface_hub import Volume

        folder = str(staged.data["folder"])
        mounted = Volume(type="dataset", source=str(staged.data["repo"]), mount_path=MOUNT,
                         revision=str(staged.data["revision"]), path=f"jobs/{folder}", read_only=True)
        command = ["uv", "run", "--no-project", "--with-requirements", f"{MOUNT}/{REQUIREMENTS}", "python",
                   "-m", "distillctl_hf_jobs.job", MOUNT, "--to", f"{namespace}/{_student_repo(token)}",
                   "--name", folder]
        return {"image": IMAGE, "command": command, "flavor": self._settings.flavor,
                "timeout": self._settings.timeout_s, "attempts": 1, "volumes": [mounted],
                "name": f"distillctl-{job.name}"[:60], "labels": {TOKEN: token},
                "secrets": {"HF_TOKEN": secret}, "env": self._environment()}

    def _environment(self) -> dict[str, str]:
        if self._settings.base_url is None:
            return {}
        return {"HF_ENDPOINT": self._settings.base_url, "HF_HUB_DISABLE_XET": "1"}

    def _job(self, service: Service, handle: JobHandle) -> JobInfo | None:
        if not _is_job(handle):
            return None
        return service.read(service.api.inspect_job, job_id=handle.job_id,
                            namespace=str(handle.data["namespace"]))

    def _handle(self, job: JobInfo, token: str) -> JobHandle | None:
        if not is_name(job.id) or not _is_namespace(job.owner.name):
            return None
        made = job.created_at.timestamp() if job.created_at else 0.0
        return JobHandle(self.name, job.id, token, account(self._settings, self._env), made,
                         f"{self._settings.endpoint}/jobs/{job.owner.name}/{job.id}",
                         {"namespace": job.owner.name})

    def _cost(self, service: Service, job: JobInfo) -> float | None:
        """What the time that the job ran for costs by the price list; None where either is not known."""
        if job.durations is None:
            return None
        seconds = job.durations.running_secs
        if seconds is None:  # it never ran
            return 0.0
        flavor = flavors(service).get(str(job.flavor))
        return flavor.cost(seconds) if flavor and isinstance(seconds, int | float) else None

    # --- the student ---

    def _base(self, folder: str) -> Path:
        """Where it is kept which folder of this machine a job's student is."""
        return safe_join(self._env.workspace / "bases", f"{folder}.json")

    def _student(self, fetched: Path, kind: Literal["adapter", "model"], result: Mapping[str, Any],
                 found: Mapping[str, str], repo: str, revision: str) -> StudentRef:
        """The reference to a fetched student. found: the digests of its files, the job's answers among
        them. Raises BackendError, StudentError where it is not sound."""
        from distillctl_local.safety import read_header

        if result["files"] != found:
            raise StudentError(Problem("the repo's files are not what the job pushed", where=repo,
                                       hint="run again with --resubmit to train anew"))
        read_header(fetched / (WEIGHTS if kind == "adapter" else MODEL_WEIGHTS))
        answers = {name: digest for name, digest in found.items() if name == job_answers.FILE}
        # a student's folder holds nothing else
        return StudentRef(self.name, kind, self._model_of(result), kind if answers else ".", {
            name: digest for name, digest in found.items() if name not in answers}, {
            "revision": result.get("revision"), "rows": result["rows"], "seconds": result["seconds"],
            "repo": repo, "commit": revision}, answers)

    def _model_of(self, result: Mapping[str, Any]) -> str:
        """The base model: a Hub id or alias, or the folder of this machine that was uploaded."""
        if not result["model"].startswith(f"{BASE}/"):
            return result["model"]
        path = self._base(result["folder"])
        if not path.is_file():
            raise BackendError(Problem("was trained on a folder of another workspace", where=str(path.parent),
                                       value=result["model"], hint="collect it in that workspace"))
        return read_json(path)


def _student_repo(token: str) -> str:
    return f"distillctl-{token}"


def _is_namespace(text: object) -> bool:
    return isinstance(text, str) and is_name(text.replace(".", "-"))


def _is_job(handle: JobHandle) -> bool:
    return is_name(handle.job_id) and _is_namespace(handle.data.get("namespace"))
