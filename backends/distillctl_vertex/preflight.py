"""What can be known before anything is sent: rows, model, dates, access, cost, and what stays unsaid."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from distillctl import registry
from distillctl.backend import BackendEnv, Preflight, TrainJob
from distillctl.errors import BackendError, Problem
from distillctl.hosted import unreachable, whole_epochs
from distillctl.prices import PricePoint, price_in_recipe, price_of, prompt_tokens_at_most
from distillctl.uploads import upload_rows
from distillctl_vertex import catalogue
from distillctl_vertex.client import NEEDS, Failed, Service, raise_for_account
from distillctl_vertex.data import line_of
from distillctl_vertex.settings import VertexSettings
from distillctl_vertex.storage import Objects

INSTEAD = "`backend: together`, `hf-jobs` or `local` trains on the same rows: change that one word"
_SHOWN = 20  # most problems of one kind
_LOCAL_NEEDS = ("torch", "transformers", "safetensors")


@dataclass
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(job: TrainJob, model: str, settings: VertexSettings, env: BackendEnv) -> Preflight:
    """The preflight of a job. Raises Unreachable."""
    if missing := registry.needs("vertex", *NEEDS):
        return Preflight(problems=missing, sends_to=(settings.host,))
    found = _Findings()
    found.notes.append(f"{settings.host} tunes {model}: {_length_in_words(job, settings)}")
    _examine_model(job, model, settings, env, found)
    _examine_hyperparameters(job, model, settings, found)
    if settings.location not in catalogue.REGIONS and not settings.is_here:
        found.warnings.append(f"{settings.location} is no region that Google listed for tuning in "
                              f"{catalogue.AS_OF}: {', '.join(catalogue.REGIONS)}")
    cost = _examine_rows(job, model, settings, found)
    if env.offline:
        found.notes.append("offline: the model, the project, the bucket and the credentials were not "
                           "looked up")
    else:
        _examine_access(model, settings, env, found)
    return Preflight(tuple(found.problems), tuple(found.warnings), tuple(found.notes), cost, None,
                     (f"{settings.host}, bucket {settings.bucket}",))


def epochs(job: TrainJob, settings: VertexSettings) -> int:
    """Passes over the rows, which is all that the service can be told about the training's length."""
    return settings.epochs if settings.epochs is not None else whole_epochs(job)


def answer_price(base: str, settings: VertexSettings) -> PricePoint | None:
    """What one answer of a Gemini model costs, tuned or not."""
    return price_in_recipe(settings.price) if settings.price else price_of(base, "google")


def hub_model(model: str, settings: VertexSettings) -> str | None:
    """An open model's id on the Hub."""
    known = catalogue.OPEN.get(model)
    return settings.hub_model or (known.hub if known else None)


# --- the model ---


def _examine_model(job: TrainJob, model: str, settings: VertexSettings, env: BackendEnv,
                   found: _Findings) -> None:
    where = "backends.vertex.model" if settings.model else "student.model"
    if catalogue.is_gemini(model):
        _examine_gemini(job, model, where, settings, env, found)
    elif catalogue.is_open(model):
        _examine_open(job, model, where, settings, found)
    else:
        found.problems.append(Problem(
            "is no model that Vertex AI tunes", field=where, value=model,
            hint="set backends.vertex.model: gemini-3.5-flash-lite, or an open model by its Model Garden id, "
                 "e.g. meta/llama3_1@llama-3.1-8b-instruct"))


def _examine_gemini(job: TrainJob, model: str, where: str, settings: VertexSettings, env: BackendEnv,
                    found: _Findings) -> None:
    today = datetime.fromtimestamp(env.clock(), UTC).date()
    known = catalogue.GEMINI.get(model)
    if known is None:
        found.warnings.append(f"{model} is not among the Gemini models that could be tuned in "
                              f"{catalogue.AS_OF} ({', '.join(catalogue.GEMINI)}); Google decides when the "
                              "job is created")
    else:
        _examine_dates(model, known, where, today, found)
    if answer_price(model, settings) is None:
        found.problems.append(Problem(
            f"what answers of {model} cost is not known, so no budget could be kept",
            field="backends.vertex.price", hint="give it in US dollars per million tokens: "
            "{input: 0.3, output: 2.5}"))
    elif settings.price is None:
        found.notes.append("answers of the tuned model are priced as its base's; backends.vertex.price "
                           "changes that")
    if job.train.lora is None and settings.adapter_size is None:
        found.warnings.append("train.lora: null asks for every weight, and Gemini is tuned with an adapter "
                              "alone; backends.vertex.adapter_size names its rank and ends this warning")
    found.notes.append("the tuned model answers at an endpoint of its own, billed by the token; it and its "
                       "rows stay in the project until you delete them")


def _examine_dates(model: str, known: catalogue.Gemini, where: str, today: date, found: _Findings) -> None:
    closing = known.retires - timedelta(days=catalogue.CLOSING_DAYS)
    if known.fixed and known.retires <= today:
        found.problems.append(Problem(
            f"{model} was to retire on {known.retires}, and what was tuned from it with it", field=where,
            value=model, hint="take gemini-3.5-flash-lite, or gemini-3.5-flash; or: " + INSTEAD))
        return
    day = f"{'on' if known.fixed else 'at the earliest on'} {known.retires}"
    left = (known.retires - today).days
    text = f"{model} retires {day} (in {left} days), and every model tuned from it with it"
    if closing <= today:
        found.warnings.append(f"{text}; it closes to new tuning about a month before")
    else:
        found.notes.append(text)


def _examine_open(job: TrainJob, model: str, where: str, settings: VertexSettings,
                  found: _Findings) -> None:
    known = catalogue.OPEN.get(model)
    mode = catalogue.mode_of(model, settings.tuning_mode, job.train.lora)
    if known is None:
        found.warnings.append(f"{model} is not among the open models that could be tuned in "
                              f"{catalogue.AS_OF}; Google decides when the job is created")
    elif mode not in known.modes:
        found.problems.append(Problem(
            f"{model} can be tuned by {' or '.join(known.modes)} alone", value=mode,
            field="backends.vertex.tuning_mode" if settings.tuning_mode else "train.lora",
            hint=None if settings.tuning_mode else "give train.lora a rank, or take another model"))
    if settings.tuning_mode == "adapter" and job.train.lora is None:
        found.problems.append(Problem("contradicts `train.lora: null`, which asks for every weight",
                                      field="backends.vertex.tuning_mode", value="adapter",
                                      hint="delete the line, or give train.lora a rank"))
    if mode == "full" and settings.learning_rate is None and job.train.rate_warning:
        found.warnings.append(job.train.rate_warning)
    hub = hub_model(model, settings)
    found.problems.extend(registry.needs("local", *_LOCAL_NEEDS))
    if hub is None:
        found.problems.append(Problem(
            f"which model of the Hugging Face Hub {model} is, is not known here", field=where, value=model,
            hint="set backends.vertex.hub_model: what comes back is opened with it"))
    found.notes.append(f"its weights come to this machine and answer here; untrained, {hub} does "
                       "(`evaluate.base: false` leaves that out)")


# --- what is translated, and what cannot be ---


def _length_in_words(job: TrainJob, settings: VertexSettings) -> str:
    number = epochs(job, settings)
    text = f"{number} epoch{'s' if number != 1 else ''}"
    if settings.epochs is None and job.train.epochs is None:
        text += (f" (it counts no steps: train.max_steps {job.train.max_steps} of "
                 f"{job.train.batch_size} rows, rounded up)")
    return text


def _examine_hyperparameters(job: TrainJob, model: str, settings: VertexSettings, found: _Findings) -> None:
    gemini = catalogue.is_gemini(model)
    for name, value, fits in (
            ("learning_rate_multiplier", settings.learning_rate_multiplier, gemini),
            ("learning_rate", settings.learning_rate, not gemini),
            ("tuning_mode", settings.tuning_mode, not gemini), ("hub_model", settings.hub_model, not gemini)):
        if value is not None and not fits:
            found.problems.append(Problem(
                f"is for {'open' if gemini else 'Gemini'} models, and {model} is none",
                field=f"backends.vertex.{name}", value=value, hint="delete the line"))
    known = catalogue.GEMINI.get(model)
    if known and settings.adapter_size and settings.adapter_size not in known.adapter_sizes:
        found.problems.append(Problem(
            f"{model} takes {', '.join(map(str, known.adapter_sizes))}",
            field="backends.vertex.adapter_size", value=settings.adapter_size))
    found.notes.append(_adapter_in_words(job, model, settings))
    left_out = ["seed (two runs may differ)", "schedule", "warmup", "weight_decay", "max_length",
                "lora.alpha", "lora.dropout", "lora.targets"]
    if gemini:
        left_out[1:1] = ["learning_rate", "batch_size"]
        if settings.learning_rate_multiplier is None:
            found.notes.append("Google chooses the learning rate and the batch size; "
                               "backends.vertex.learning_rate_multiplier changes the first")
    else:
        rate = settings.learning_rate or job.train.learning_rate
        found.notes.append(f"learning rate {rate:g}, {job.train.batch_size} rows a step")
    found.notes.append(f"it cannot be told, of `train`: {', '.join(left_out)}")


def _adapter_in_words(job: TrainJob, model: str, settings: VertexSettings) -> str:
    lora = job.train.lora
    if not catalogue.is_gemini(model) and catalogue.mode_of(model, settings.tuning_mode, lora) == "full":
        return "all weights are tuned" + (": train.lora does not apply" if lora else "")
    size = catalogue.adapter_size(model, settings.adapter_size, lora)
    if settings.adapter_size or lora is None or size == lora.rank:
        return f"an adapter of rank {size}"
    return f"an adapter of rank {size}: Google has none of rank {lora.rank}"


# --- the rows ---


def _examine_rows(job: TrainJob, model: str, settings: VertexSettings,
                  found: _Findings) -> tuple[float, float] | None:
    """Looks at every row as it would be uploaded; what its training would cost."""
    if job.rows < 1:
        found.problems.append(Problem("there is nothing to train on", field="data", value=job.rows))
    elif job.rows < catalogue.RECOMMENDED_ROWS:
        found.warnings.append(f"{job.rows} rows: Google recommends at least {catalogue.RECOMMENDED_ROWS}")
    if job.rows > catalogue.MOST_ROWS:
        found.problems.append(Problem(f"at most {catalogue.MOST_ROWS:,} rows", field="data", value=job.rows))
    if not job.train_file.is_file():
        return None
    most = catalogue.most_tokens(model)
    size = low = high = 0
    problems, long = [], []
    for row in upload_rows(job.train_file):
        size += len(line_of(row, catalogue.is_gemini(model)).encode())
        at_most = prompt_tokens_at_most(row.messages)
        low, high = low + at_most // 2, high + at_most
        if wrong := _row_problem(row.messages):
            problems.append(Problem(wrong, where=row.source or None))
        if most is not None and at_most > most:
            long.append(row.source)
    found.problems.extend(problems[:_SHOWN])
    if size > catalogue.MOST_BYTES:
        found.problems.append(Problem(f"the upload is {size / 2**20:.0f} MiB, the most is "
                                      f"{catalogue.MOST_BYTES // 2**20} MiB", where=str(job.train_file)))
    if long:
        found.warnings.append(f"{len(long)} rows may have more than {most:,} tokens, and Google drops such "
                              f"rows: {', '.join(long[:_SHOWN])}")
    return _cost(low, high, epochs(job, settings), settings, found)


def _row_problem(messages: list[dict[str, str]]) -> str | None:
    """Why Google would refuse a conversation."""
    for message in messages:
        if not message["content"].strip():
            return f"the {message['role']} message is empty"
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles[0] != "user" or any(one == two for one, two in pairwise(roles)):
        return f"the user and the assistant must take turns, the user first; here: {', '.join(roles)}"
    return None


def _cost(low: int, high: int, passes: int, settings: VertexSettings,
          found: _Findings) -> tuple[float, float] | None:
    low, high = low * passes, high * passes
    found.notes.append(f"trains {low:,} to {high:,} tokens (bytes / 4 to bytes / 2, times epochs)")
    if settings.training_price is None:
        found.notes.append("the price of training is not known: set backends.vertex.training_price, US "
                           "dollars per million tokens")
        return None
    return low * settings.training_price / 1e6, high * settings.training_price / 1e6


# --- the account ---


def _examine_access(model: str, settings: VertexSettings, env: BackendEnv, found: _Findings) -> None:
    """Asks Google, for free, whether this account can do what the job needs. Raises Unreachable."""
    with Service(settings, env) as service:
        try:
            next(service.tuning_jobs(), None)
            if catalogue.is_gemini(model):
                _look_up_model(service, model, settings, found)
            _examine_bucket(service, settings, found)
        except BackendError as error:
            found.problems.extend(error.problems)


def _look_up_model(service: Service, model: str, settings: VertexSettings, found: _Findings) -> None:
    if service.read(service.sdk.models.get, model=model) is None:
        found.problems.append(Problem(
            f"{settings.host} has no such model", field="backends.vertex.model", value=model,
            hint=f"take one of {', '.join(catalogue.GEMINI)}, or another backends.vertex.location"))


def _examine_bucket(service: Service, settings: VertexSettings, found: _Findings) -> None:
    try:
        missing = Objects(service, settings).missing_permissions()
    except Failed as failed:
        if failed.status == 404:
            found.problems.append(Problem(
                "there is no such bucket", field="backends.vertex.bucket", value=settings.bucket,
                hint=f"gcloud storage buckets create gs://{settings.bucket} --project={settings.project} "
                     f"--location={settings.location}"))
            return
        raise_for_account(failed, settings)
        raise unreachable(failed) from failed
    if missing:
        found.problems.append(Problem(
            f"these credentials lack {', '.join(missing)} on the bucket", field="backends.vertex.bucket",
            value=settings.bucket, hint="give the account the role Storage Object Admin there"))
