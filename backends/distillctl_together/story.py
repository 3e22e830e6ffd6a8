"""A job's events, which are all that Together says of what happened, failures included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from distillctl.backend import JobEvent
from distillctl.store.files import digest_json
from distillctl.types import JSON

_LEVELS = {"warning": "warning", "iwarning": "warning", "error": "error", "ierror": "error"}
_FAILURES = frozenset({"job_error", "job_user_error", "billing_limit"})


def events_of(rows: JSON, translate: Callable[[str], str]) -> tuple[JobEvent, ...]:
    """Events as the service lists them. They have no ids: their key is a digest of what they say, and of
    how many said just the same before. translate: puts our places behind line numbers."""
    seen: Counter[str] = Counter()
    told = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict):
            continue
        key = digest_json({name: row.get(name) for name in ("created_at", "type", "message", "step")})[7:31]
        seen[key] += 1
        kind = str(row.get("type") or "").lower()
        word = str(row.get("level") or "").lower().removeprefix("legacy_")
        level = "error" if kind in _FAILURES else _LEVELS.get(word, "info")
        data = {name: row[name] for name in ("step", "total_steps")
                if isinstance(row.get(name), int) and not isinstance(row[name], bool)}
        message = translate(str(row.get("message") or kind.replace("_", " ")))
        told.append(JobEvent(f"{key}-{seen[key]}", seconds_of(row.get("created_at")), message, level, data))
    return tuple(told)


def failure_of(events: Sequence[JobEvent]) -> str:
    """Why a job failed, as far as its events say."""
    return "; ".join(dict.fromkeys(event.message for event in events if event.level == "error"))


def seconds_of(at: JSON) -> float:
    """A time as the service writes it, in Unix seconds; 0 where it is none."""
    try:
        return datetime.fromisoformat(str(at)).timestamp()
    except ValueError:
        return 0.0
