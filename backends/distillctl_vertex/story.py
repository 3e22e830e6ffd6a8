"""What a tuning job's JSON says: its state, its story as events, the examples that were dropped, its cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from distillctl.backend import JobEvent, JobState
from distillctl.types import JSON
from distillctl.uploads import Sources

TOKEN = "distillctl-token"
STATES: dict[str, JobState] = {
    "JOB_STATE_QUEUED": "queued", "JOB_STATE_PENDING": "queued", "JOB_STATE_RUNNING": "running",
    "JOB_STATE_UPDATING": "running", "JOB_STATE_PAUSED": "running", "JOB_STATE_CANCELLING": "running",
    "JOB_STATE_SUCCEEDED": "succeeded", "JOB_STATE_PARTIALLY_SUCCEEDED": "succeeded",
    "JOB_STATE_FAILED": "failed", "JOB_STATE_EXPIRED": "failed", "JOB_STATE_CANCELLED": "cancelled"}
NUMBER = re.compile(r"\d{1,30}")
ENDPOINT = re.compile(r"projects/[A-Za-z0-9.:-]{1,64}/locations/([a-z0-9-]{1,41})/endpoints/\d{1,30}")
MODEL = re.compile(r"projects/[A-Za-z0-9.:-]{1,64}/locations/[a-z0-9-]{1,41}/models/\d{1,30}(@\w{1,30})?")
_UPLOAD = re.compile(r"gs://.+/(distillctl-[0-9a-f]{32})\.jsonl")
_PARTS = {  # of a job's life, in Google's words and ours
    "TUNING_JOB_STATE_WAITING_FOR_QUOTA": "waits for quota",
    "TUNING_JOB_STATE_PROCESSING_DATASET": "reads the training rows",
    "TUNING_JOB_STATE_WAITING_FOR_CAPACITY": "waits for machines",
    "TUNING_JOB_STATE_TUNING": "tunes",
    "TUNING_JOB_STATE_POST_PROCESSING": "makes the tuned model ready"}

Job = Mapping[str, Any]


def number_of(job: Job) -> str | None:
    """A job's own number, the end of its resource name."""
    name = job.get("name")
    last = name.rpartition("/")[2] if isinstance(name, str) else ""
    return last if NUMBER.fullmatch(last) else None


def token_of(job: Job) -> str | None:
    labels = job.get("labels")
    return labels.get(TOKEN) if isinstance(labels, dict) else None


def upload_of(job: Job) -> str | None:
    """The name that our rows were uploaded under."""
    found = _UPLOAD.fullmatch(str(_under(job, "supervised_tuning_spec").get("training_dataset_uri", "")))
    return found[1] if found else None


def word_of(job: Job) -> str:
    """Google's own word for the state."""
    word = job.get("state")
    return word if isinstance(word, str) and word else "none"


def seconds(job: Job, field: str) -> float:
    """A moment of the job as Unix seconds, 0.0 where it is not given."""
    try:
        return datetime.fromisoformat(str(job.get(field))).timestamp()
    except ValueError:
        return 0.0


def tuned(job: Job, field: str, pattern: re.Pattern[str]) -> str | None:
    """`endpoint` or `model` of the tuned model, where it is a name that can stand in an address."""
    name = _under(job, "tuned_model").get(field)
    return name if isinstance(name, str) and pattern.fullmatch(name) else None


def count(job: Job, field: str) -> int | None:
    """A figure of the statistics that Google takes of the rows."""
    value = _stats(job).get(field)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def message_of(job: Job, sources: Sources) -> str:
    """What went wrong, in Google's words with our file:line; "" where nothing did."""
    error = _under(job, "error")
    said = error.get("message")
    if not said:
        return ("Google calls this partly succeeded: some results may be missing"
                if word_of(job) == "JOB_STATE_PARTIALLY_SUCCEEDED" else "")
    code = f" (code {error['code']})" if error.get("code") else ""
    return sources.translate(upload_of(job), f"{said}{code}")


def cost(job: Job, price: float | None) -> float | None:
    """What a job that succeeded was billed, US dollars; None where that is not known."""
    tokens = count(job, "total_billable_token_count")
    epochs = _under(_under(job, "supervised_tuning_spec"), "hyper_parameters").get("epoch_count")
    if price is None or tokens is None or not isinstance(epochs, int) or (
            STATES.get(word_of(job)) != "succeeded"):
        return None
    return tokens * epochs * price / 1e6


def events(job: Job, sources: Sources, cursor: str | None) -> tuple[tuple[JobEvent, ...], str | None]:
    """What has happened beyond what `cursor` says was told, and the new cursor.

    Google keeps no list of events: they are read off the job, each with one key for good.
    """
    told = set((cursor or "").split())
    new = [event for event in _all_events(job, sources) if event.key not in told]
    keys = " ".join(sorted(told | {event.key for event in new}))
    return tuple(new), keys or None


def _all_events(job: Job, sources: Sources) -> Iterator[JobEvent]:
    if job.get("create_time"):
        yield JobEvent("created", seconds(job, "create_time"), f"tuning job {number_of(job)} created")
    if job.get("start_time"):
        yield JobEvent("started", seconds(job, "start_time"), "the job has started")
    part = job.get("tuning_job_state")
    if isinstance(part, str) and part != "TUNING_JOB_STATE_UNSPECIFIED" and not job.get("end_time"):
        key = re.sub(r"\W", "_", part)[:80]
        yield JobEvent(key, seconds(job, "update_time"), _PARTS.get(part, part))
    if _stats(job):
        yield from _of_stats(job, sources)
    if job.get("end_time"):
        said = message_of(job, sources)
        level = "error" if STATES.get(word_of(job)) == "failed" else "info"
        yield JobEvent("ended", seconds(job, "end_time"),
                       f"the job has ended as {word_of(job)}{': ' + said if said else ''}", level)


def _of_stats(job: Job, sources: Sources) -> Iterator[JobEvent]:
    at = seconds(job, "start_time")
    figures = [f"{number:,} {what}" for what, field in (
        ("examples", "tuning_dataset_example_count"), ("billable tokens", "total_billable_token_count"),
        ("steps", "tuning_step_count")) if (number := count(job, field)) is not None]
    if figures:
        yield JobEvent("stats", at, f"Google read {', '.join(figures)}",
                       data={"total_steps": count(job, "tuning_step_count")})
    lost = dropped(job, sources)
    if lost:
        yield JobEvent("dropped", at, lost, "warning")


def dropped(job: Job, sources: Sources) -> str:
    """The examples that Google left out or cut, with our file:line; "" where it used all."""
    total = count(job, "total_truncated_example_count")
    numbers = [n for n in _list(_stats(job), "truncated_example_indices") if isinstance(n, int)]
    reasons = [str(text)[:200] for text in _list(_stats(job), "dropped_example_reasons")]
    if not total and not numbers:
        return ""
    places = sources.of(upload_of(job))
    shown = []
    for index, number in enumerate(numbers):
        place = places[number - 1] if 1 <= number <= len(places) else ""
        why = f": {reasons[index]}" if index < len(reasons) else ""
        shown.append((f"line {number} ({place})" if place else f"line {number}") + why)
    of_all = f" of {len(places)}" if places else ""
    listed = f": {'; '.join(shown)}" if shown else ""
    more = "" if total is None or total <= len(shown) else "; Google names no more of them"
    return f"Google dropped {total if total is not None else len(numbers)}{of_all} examples{listed}{more}"


def _stats(job: Job) -> dict[str, JSON]:
    return _under(_under(job, "tuning_data_stats"), "supervised_tuning_data_stats")


def _under(value: Mapping[str, Any], field: str) -> dict[str, Any]:
    found = value.get(field)
    return found if isinstance(found, dict) else {}


def _list(value: Mapping[str, Any], field: str) -> list[Any]:
    found = value.get(field)
    return found if isinstance(found, list) else []
