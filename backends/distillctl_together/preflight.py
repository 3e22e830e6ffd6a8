"""What can be known before anything is sent: rows, model, limits, deployment, cost."""

from __future__ import annotations

from distillctl import registry
from distillctl.backend import BackendEnv, Preflight, TrainJob
from distillctl.errors import BackendError, Problem
from distillctl.hosted import unreachable
from distillctl.store.files import read_jsonl
from distillctl.types import JSON
from distillctl.uploads import upload_rows
from distillctl_together.client import Failed, Service, is_model, key_problem, raise_for_account
from distillctl_together.data import Size, size_of
from distillctl_together.request import translate
from distillctl_together.serving import Serving, serving_usd
from distillctl_together.settings import TogetherSettings

MOST_BYTES = 5 * 1024**3  # beyond it, uploads go in parts
_SHOWN = 20  # most problems of one kind


class Examination:
    """The preflight of one job as it comes together."""

    def __init__(self, job: TrainJob, model: str, settings: TogetherSettings, env: BackendEnv) -> None:
        self._job, self._model, self._settings, self._env = job, model, settings, env
        self._answering_usd = 0.0
        self._field = "backends.together.model" if settings.model else "student.model"
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        how = "with LoRA" if job.train.lora else "in full"
        self.notes: list[str] = [f"{settings.host} tunes {model} {how}; the upload goes to the storage that "
                                 "it names"]

    def run(self) -> Preflight:
        """Raises Unreachable."""
        if missing := registry.needs("together", "together"):
            return Preflight(problems=missing, sends_to=(self._settings.host,))
        if self._job.rows < 1:
            self.problems.append(Problem("there is nothing to train on", field="data", value=self._job.rows))
        size = self._rows() if self._job.train_file.is_file() else None
        limits: dict[str, JSON] = {}
        if not self._env.secret(self._settings.api_key_env):
            self.problems.append(key_problem(self._settings))
        elif self._env.offline:
            self.notes.append("offline: the model, its limits, its deployment and the key were not looked up")
        else:
            limits = self._ask()
        cost = None
        if size is not None:
            found = translate(self._job, size, limits)
            self.problems += found.problems
            self.warnings += found.warnings
            self.notes += found.notes
            cost = cost_of(size, int(found.arguments["n_epochs"]), self._settings)
            self._say_cost()
        return Preflight(tuple(self.problems), tuple(self.warnings), tuple(self.notes), cost, None,
                         (self._settings.host,), self._answering_usd)

    def _rows(self) -> Size:
        size = size_of(upload_rows(self._job.train_file))
        if size.bytes > MOST_BYTES:
            self.problems.append(Problem(f"the upload is {size.bytes / 2**20:.0f} MiB, the most is "
                                         f"{MOST_BYTES // 2**20} MiB", where=str(self._job.train_file)))
        wrong = []
        for row in read_jsonl(self._job.train_file):
            roles = [message["role"] for message in row["messages"]]
            talk = roles[1:] if roles[:1] == ["system"] else roles
            where = str(row.get("source") or "") or None
            if talk != ["user", "assistant"] * (len(talk) // 2) + ["user"]:
                wrong.append(Problem("the roles must be user and assistant in turn, after at most one system "
                                     "message", where=where, value=roles))
            empty = [m["role"] for m in row["messages"] if not m["content"].strip()]
            if empty or not row["completion"].strip():
                wrong.append(Problem(f"the {(empty or ['assistant'])[0]} message is empty", where=where))
        self.problems += wrong[:_SHOWN]
        return size

    def _ask(self) -> dict[str, JSON]:
        """Look up the model; its limits, empty where it has a problem."""
        if not is_model(self._model):
            self.problems.append(self._no_model(f"{self._model!r} is no model's name"))
            return {}
        with Service(self._settings, self._env) as service:
            try:
                limits = service.call(service.sdk.fine_tuning.with_raw_response.model_limits,
                                      model_name=self._model)
                self._deployment(service)
                return limits
            except BackendError as error:
                self.problems.extend(error.problems)
            except Failed as failed:
                self._failed(failed)
        return {}

    def _failed(self, failed: Failed) -> None:
        try:
            raise_for_account(failed, self._settings)
        except BackendError as error:
            self.problems.extend(error.problems)
            return
        if not failed.refused or failed.status == 429:
            raise unreachable(failed)
        self.problems.append(self._no_model(str(failed)))

    def _no_model(self, why: str) -> Problem:
        return Problem(f"{self._settings.host} cannot tune this model: {why}", field=self._field,
                       value=self._model, hint="set backends.together.model to one that it lists for "
                       "fine-tuning, e.g. Qwen/Qwen3-0.6B")

    def _deployment(self, service: Service) -> None:
        """That what is trained can be asked, and for how much."""
        _ = service.project
        target = Serving(service, self._settings).of_base(self._model)
        if target is None:
            self.problems.append(Problem(
                f"{self._settings.host} tunes this model but offers no deployment of it, so the student "
                "could not be asked", field=self._field, value=self._model))
            return
        if target.usd_per_hour is None:
            self.problems.append(Problem(
                f"what an hour of {target.hardware} costs is not known, so no budget could be kept",
                field="backends.together.price_per_hour", hint="set it, in US dollars"))
            return
        self._answering_usd = serving_usd(target, self._settings)
        self.notes.append(
            f"answers come from a dedicated deployment ({target.hardware}, ${target.usd_per_hour:.2f} an "
            "hour), started for the student and, where it is compared, for the untrained model, and stopped "
            f"after; idle for {self._settings.inactive_timeout} minutes it stops by itself, so "
            f"${self._answering_usd:.2f} of the budget must be left before it is started")

    def _say_cost(self) -> None:
        if self._settings.training_price is None:
            self.notes.append("what training costs is known after the upload, from Together's own estimate; "
                              "set backends.together.training_price, US dollars per million tokens, to know "
                              "(and limit) it before")
        else:
            self.notes.append("a job that Together estimates above this cost is not created")


def cost_of(size: Size, epochs: int, settings: TogetherSettings) -> tuple[float, float] | None:
    """What training costs at least and at most, US dollars; None where no price was given."""
    if settings.training_price is None:
        return None
    low, high = (tokens * epochs * settings.training_price / 1e6 for tokens in size.tokens)
    return low, high
