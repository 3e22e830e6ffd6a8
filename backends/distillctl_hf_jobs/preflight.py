"""What can be known before anything is sent: token, namespace, hardware and its price, student, rows."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from distillctl_local import full
from distillctl_local.backend import NEEDS
from distillctl_local.facts import layers_below
from distillctl_local.models import ALIASES, facts_at_hand
from distillctl_local.preflight import rows_too_long

from distillctl import registry
from distillctl.backend import BackendEnv, Preflight, TrainJob
from distillctl.errors import BackendError, DistillctlError, Problem
from distillctl_hf_jobs.bundle import PROJECT, checkout, is_folder
from distillctl_hf_jobs.client import Service, token_problem
from distillctl_hf_jobs.hardware import flavors, listing
from distillctl_hf_jobs.settings import HfJobsSettings


def examine(job: TrainJob, model: str, settings: HfJobsSettings, env: BackendEnv) -> Preflight:
    """The preflight of a job. Raises Unreachable."""
    missing = registry.needs("hf-jobs", "huggingface_hub", "hatchling") + registry.needs("local", *NEEDS)
    if missing:
        return Preflight(problems=missing, sends_to=(settings.host,))
    problems = full.problems(job.train, settings.trainer, "backends.hf-jobs.trainer")
    notes = [f"the local trainer trains {model} on `{settings.flavor}` at {settings.host}, for at most "
             f"{settings.timeout}",
             "rows, settings and a wheel of distillctl go to a private dataset repo, the student comes back "
             "through a private model repo; both stay there",
             "the job gets the token as a secret", _answering(job, settings)]
    if checkout() is None and not metadata.distribution(PROJECT).files:
        problems.append(Problem("this installation of distillctl lists no files, so the job cannot get it",
                                hint="install it with pip, from a wheel or a checkout"))
    if settings.trainer.watches and not (job.dev_file and job.dev_file.exists()
                                         and job.dev_file.stat().st_size):
        problems.append(Problem("there is no dev split to watch", field="backends.hf-jobs.trainer",
                                hint="give the dev split a share, or leave out `keep` and `patience`"))
    problems += _student(job, model, settings.trainer.layers, notes)
    cost = None
    if not env.secret(settings.api_key_env):
        problems.append(token_problem(settings))
    elif env.offline:
        notes.append("offline: the token, the hardware and its price were not looked up")
    else:
        try:
            with Service(settings, env) as service:
                cost = _look_up(service, model, settings, problems, notes)
        except BackendError as error:
            problems.extend(error.problems)
    warnings = (job.train.rate_warning,) if job.train.rate_warning else ()
    return Preflight(tuple(problems), warnings, tuple(notes), cost, (60.0, float(settings.timeout_s)),
                     (settings.host,))


def _answering(job: TrainJob, settings: HfJobsSettings) -> str:
    if job.prompts is None:
        return ("the student answers on this machine; with backends.hf-jobs.answer the job answers dev and "
                "test")
    return ("the job answers dev and test too: their prompts go along, without what is expected, and latency "
            f"is that of `{settings.flavor}`")


def _student(job: TrainJob, model: str, layers: int | None, notes: list[str]) -> list[Problem]:
    """What is wrong with the student or its rows, as far as it lies here."""
    try:
        facts = facts_at_hand(model, job.revision)
        if is_folder(model):
            if facts is None:
                return [Problem("there is no such model folder, and it is no Hub id either",
                                field="student.model", value=model)]
            size = sum(path.stat().st_size for path in Path(model).expanduser().glob("*.safetensors"))
            notes.append(f"the student's folder goes there as well, {size / 2**20:,.0f} MiB of weights")
        if facts is None:
            return []
        layers_below(facts, layers, "backends.hf-jobs.trainer")
        return rows_too_long(job, model)
    except DistillctlError as error:
        return list(error.problems)


def _look_up(service: Service, model: str, settings: HfJobsSettings, problems: list[Problem],
             notes: list[str]) -> tuple[float, float] | None:
    """Ask who we are, for the model and for the hardware; what the job costs at least and at most."""
    _namespace(service, settings, problems)
    if not is_folder(model) and model not in ALIASES:
        _hub_model(service, model, problems)
    known = flavors(service)
    flavor = known.get(settings.flavor)
    if flavor is None:
        problems.append(Problem("there is no such hardware", field="backends.hf-jobs.flavor",
                                value=settings.flavor, hint=f"there is: {listing(list(known.values()))}"))
        return None
    low, high = flavor.cost(0), flavor.cost(settings.timeout_s)
    if low is None or high is None:
        notes.append(f"what {flavor.name} ({flavor.text}) costs is not known")
        return None
    notes.append(f"{flavor.name} ({flavor.text}) costs ${low * 60:.2f} per hour, billed by the minute; "
                 f"backends.hf-jobs.timeout ends the job, and with it the bill, after {settings.timeout}")
    return low, high


def _namespace(service: Service, settings: HfJobsSettings, problems: list[Problem]) -> None:
    who = service.read(service.api.whoami) or {}
    names = [who.get("name"), *(org.get("name") for org in who.get("orgs") or () if isinstance(org, dict))]
    if settings.namespace is not None and settings.namespace not in names:
        problems.append(Problem("this token's user is no member of the namespace", value=settings.namespace,
                                field="backends.hf-jobs.namespace",
                                hint=f"it has: {', '.join(filter(None, names)) or 'none'}"))
    auth = who.get("auth")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    if isinstance(token, dict) and token.get("role") == "read":
        problems.append(Problem("the token can only read", field="backends.hf-jobs.api_key_env",
                                value=settings.api_key_env, hint="make one that can write and run jobs"))


def _hub_model(service: Service, model: str, problems: list[Problem]) -> None:
    if service.read(service.api.model_info, model) is None:
        problems.append(Problem("the Hub has no such model for this token", field="student.model",
                                value=model, hint="check the id; a gated model needs its terms accepted"))
