"""A job's log: lines that are events of the trainer, and all the others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from distillctl.backend import JobEvent
from distillctl.types import JSON

_MARK = "distillctl-event "
_LEVELS = {"info": "info", "warning": "warning", "error": "error"}
_NUMBERS = frozenset({"step", "total_steps", "epoch", "loss", "eval_loss", "eval_score", "learning_rate",
                      "seconds_per_step"})
_SHOWN = 5  # lines that a failure is shown with


def event_line(event: Mapping[str, JSON]) -> str:
    """An event of the trainer's story as a line of the log."""
    return _MARK + json.dumps(event)


def new_events(lines: Iterable[str], cursor: str | None) -> tuple[tuple[JobEvent, ...], str | None]:
    """The events after the one that `cursor` names, and the last one's key.

    A log is given from its start at every look, so events go by their own running number.
    """
    last = int(cursor) if cursor and cursor.isdecimal() else 0
    found = {}
    for line in lines:
        event = _event(line)
        if event is not None and int(event.key) > last:
            found.setdefault(int(event.key), event)
    return tuple(found[number] for number in sorted(found)), str(max(found)) if found else cursor


def last_words(lines: Iterable[str]) -> str:
    """The end of what the job itself printed, for a failure."""
    plain = [line.strip() for line in lines if line.strip() and not line.startswith(_MARK)]
    return " | ".join(plain[-_SHOWN:])[-500:]


def _event(line: str) -> JobEvent | None:
    """The event of a line; None for any other line, and for what only looks like one."""
    if not line.startswith(_MARK):
        return None
    try:
        row = json.loads(line.removeprefix(_MARK))
        key, time, message, data = row["key"], float(row["time"]), str(row["message"]), row["data"]
        if not (isinstance(key, str) and key.isdecimal() and len(key) < 12 and math.isfinite(time)):
            return None
        numbers = {name: value for name, value in data.items() if name in _NUMBERS
                   and isinstance(value, int | float) and math.isfinite(value)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return JobEvent(key, time, message[:2000], _LEVELS.get(row.get("level"), "info"), numbers)
