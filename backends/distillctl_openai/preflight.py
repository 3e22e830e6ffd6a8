"""What can be known before anything is sent: rows, model, dates, cost, and what cannot be expressed.

Dates: https://developers.openai.com/api/docs/deprecations
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

from distillctl import registry
from distillctl.backend import BackendEnv, Preflight, TrainJob
from distillctl.errors import BackendError, Problem
from distillctl.hosted import Failed, unreachable, whole_epochs
from distillctl.prices import PricePoint, Rate, price_in_recipe, price_of, prompt_tokens_at_most
from distillctl.sdk_calls import is_name
from distillctl.uploads import upload_rows
from distillctl_openai.client import Service, key_problem, raise_for_account
from distillctl_openai.settings import OpenAISettings

LEAST_ROWS = 10
MOST_BYTES = 512 * 1024 * 1024
MOST_EPOCHS = 50
CLOSING = date(2027, 1, 6)
INSTEAD = "`backend: together`, `vertex`, `hf-jobs` or `local` trains on the same rows: change that one word"
_TUNED = {  # not in the price table
    model: PricePoint(rate, "the price file of LiteLLM 1.109.1", "2026-11-01") for model, rate in (
        ("gpt-4.1-2025-04-14", Rate(3.0, 12.0)), ("gpt-4.1-mini-2025-04-14", Rate(0.8, 3.2)))}
_SHOWN = 20  # most problems of one kind


@dataclass(frozen=True)
class Size:
    """An upload: its bytes, and its tokens at least and at most."""

    bytes: int
    tokens: tuple[int, int]


def examine(job: TrainJob, model: str, settings: OpenAISettings, env: BackendEnv) -> Preflight:
    """The preflight of a job. Raises Unreachable."""
    if missing := registry.needs("openai", "openai"):
        return Preflight(problems=missing, sends_to=(settings.host,))
    problems: list[Problem] = []
    warnings: list[str] = []
    notes = [f"{settings.host} tunes {model}: {_length_in_words(job, settings)}", *_not_expressed(settings)]
    if job.rows < LEAST_ROWS:
        problems.append(Problem(f"{settings.host} tunes on at least {LEAST_ROWS} rows", field="data",
                                value=job.rows, hint="add examples, or use `backend: local`"))
    if epochs(job, settings) > MOST_EPOCHS:
        problems.append(Problem(f"at most {MOST_EPOCHS} epochs", field="train", value=epochs(job, settings)))
    cost = None
    if job.train_file.is_file():
        size, wrong = _examine_rows(job)
        problems += wrong
        cost = _cost(size, job, settings, notes)
    if job.train.lora is None:
        warnings.append(f"train.lora: null asks for every weight; {settings.host} does not let that be "
                        "chosen and does not say how it tunes")
    if settings.is_openai:
        _closing(datetime.fromtimestamp(env.clock(), UTC).date(), problems, warnings)
    if settings.api_key_env and not env.secret(settings.api_key_env):
        problems.append(key_problem(settings))
    elif env.offline:
        notes.append("offline: the model and the key were not looked up")
    else:
        _examine_model(model, settings, env, problems, warnings)
    if answer_price(f"ft:{model}:of::us", model, settings) is None:
        problems.append(Problem(
            f"what answers of a tuned {model} cost is not known, so no budget could be kept",
            field="backends.openai.price", hint="give it in US dollars per million tokens: {input: 0.8, "
            "output: 3.2}; {input: 0, output: 0} for a server of your own"))
    return Preflight(tuple(problems), tuple(warnings), tuple(notes), cost, None, (settings.host,))


def epochs(job: TrainJob, settings: OpenAISettings) -> int:
    """Passes over the rows, which is all that the service can be told about the training's length."""
    return settings.n_epochs if settings.n_epochs is not None else whole_epochs(job)


def answer_price(tuned: str | None, base: str, settings: OpenAISettings) -> PricePoint | None:
    """What one answer costs: of the tuned model, or of the base model where `tuned` is None."""
    provider = "openai" if settings.is_openai else None
    own = price_in_recipe(settings.price) if settings.price else None
    if tuned is None:
        return price_of(base, provider, settings.base_url) or own
    return own or price_of(tuned, provider, settings.base_url) or (_TUNED.get(base) if provider else None)


def _length_in_words(job: TrainJob, settings: OpenAISettings) -> str:
    found = epochs(job, settings)
    text = f"{found} epoch{'s' if found != 1 else ''}"
    if settings.n_epochs is None and job.train.epochs is None:
        text += (f" (it counts no steps: train.max_steps {job.train.max_steps} of "
                 f"{job.train.batch_size} rows, rounded up)")
    return text


def _not_expressed(settings: OpenAISettings) -> list[str]:
    chosen = [name for name, value in (("batch size", settings.batch_size),
                                       ("learning rate", settings.learning_rate_multiplier)) if value is None]
    notes = ["it takes no adapter shape, learning rate, schedule, warm-up, weight decay or length limit: "
             "train.lora, train.learning_rate, train.schedule, train.warmup, train.weight_decay and "
             "train.max_length do not apply"]
    if chosen:
        notes.append(f"it chooses the {' and the '.join(chosen)} itself; backends.openai.batch_size and "
                     "backends.openai.learning_rate_multiplier change that")
    return notes


def _examine_rows(job: TrainJob) -> tuple[Size, list[Problem]]:
    """The size of the upload, and rows that the service's check would refuse."""
    problems: list[Problem] = []
    total = low = high = 0
    for row in upload_rows(job.train_file):
        total += len(row.line.encode())
        at_most = prompt_tokens_at_most(row.messages)
        low, high = low + at_most // 2, high + at_most
        if empty := [message["role"] for message in row.messages if not message["content"].strip()]:
            problems.append(Problem(f"the {empty[0]} message is empty", where=row.source or None))
    if total > MOST_BYTES:
        problems.append(Problem(f"the upload is {total / 2**20:.0f} MiB, the most is "
                                f"{MOST_BYTES // 2**20} MiB", where=str(job.train_file)))
    return Size(total, (low, high)), problems[:_SHOWN]


def _cost(size: Size, job: TrainJob, settings: OpenAISettings,
          notes: list[str]) -> tuple[float, float] | None:
    low, high = (tokens * epochs(job, settings) for tokens in size.tokens)
    notes.append(f"trains {low:,} to {high:,} tokens (bytes / 4 to bytes / 2, times epochs)")
    if settings.training_price is None:
        notes.append("the price of training is not known: set backends.openai.training_price, US dollars "
                     "per million tokens")
        return None
    return low * settings.training_price / 1e6, high * settings.training_price / 1e6


def _closing(today: date, problems: list[Problem], warnings: list[str]) -> None:
    """OpenAI ends fine-tuning for everybody on `CLOSING`."""
    if today >= CLOSING:
        problems.append(Problem(f"OpenAI takes no new fine-tuning jobs since {CLOSING}", field="backend",
                                value="openai", hint=INSTEAD))
    else:
        warnings.append(
            f"OpenAI takes no new fine-tuning jobs from {CLOSING} on ({(CLOSING - today).days} days left), "
            f"and none now from organizations without recent tuned models. {INSTEAD}")


def _examine_model(model: str, settings: OpenAISettings, env: BackendEnv, problems: list[Problem],
                   warnings: list[str]) -> None:
    field = "backends.openai.model" if settings.model else "student.model"
    if not is_name(model):
        problems.append(Problem("is no model of this service", field=field, value=model,
                                hint="set backends.openai.model, e.g. gpt-4.1-mini-2025-04-14"))
        return
    with Service(settings, env) as service:
        try:
            found = service.call(service.sdk.models.with_raw_response.retrieve, model)
        except BackendError as error:
            problems.extend(error.problems)
            return
        except Failed as failed:
            _model_failed(failed, model, field, settings, problems, warnings)
            return
    if gone := _shutdown(found.get("shutdown_date")):
        today = datetime.fromtimestamp(env.clock(), UTC).date()
        if gone <= today:
            problems.append(Problem(f"{model} was shut down on {gone}", field=field, value=model,
                                    hint=INSTEAD))
        else:
            warnings.append(f"{model} shuts down on {gone}, in {(gone - today).days} days, and every model "
                            "tuned from it with it")


def _model_failed(failed: Failed, model: str, field: str, settings: OpenAISettings,
                  problems: list[Problem], warnings: list[str]) -> None:
    if failed.status == 404 and not settings.is_openai and failed.code is None:
        warnings.append(f"{settings.host} does not say whether {model} can be tuned there")
    elif failed.status == 404:
        problems.append(Problem(f"{settings.host} has no such model for this key: {failed}", field=field,
                                value=model, hint="set backends.openai.model to one that can be tuned, with "
                                "its date, e.g. gpt-4.1-mini-2025-04-14"))
    else:
        try:
            raise_for_account(failed, settings)
        except BackendError as error:
            problems.extend(error.problems)
        else:
            raise unreachable(failed)


def _shutdown(text: object) -> date | None:
    try:
        return date.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
