"""Secrets: a name everywhere, a value in one place.

Keys come from environment variables, are held as `Secret`, and leave it only through `reveal`, at the
moment a header is built. Whatever value was read is known to `redact`, which removes it from any text by
value, wherever the text came from: a provider that echoes a header, a traceback, a log line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import traceback
import urllib.parse
from collections.abc import Callable

HIDDEN = "***"
_SHORTEST = 8  # a shorter value (a local server's "none") is no secret, and would blot out common words

_known: set[str] = set()
_lock = threading.Lock()


class Secret(str):
    """A secret value that shows, formats, serialises and pickles as ***.

    It is the string "***" to everything but `reveal`, so code that forgets to reveal it leaks nothing.
    """

    name: str
    reveal: Callable[[], str]

    def __new__(cls, name: str, value: str) -> Secret:
        secret = super().__new__(cls, HIDDEN)
        secret.name = name
        secret.reveal = lambda: value  # a closure: vars() and debuggers show no value
        _remember(value)
        return secret

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (HIDDEN,)


def get(name: str) -> Secret | None:
    """The secret in the environment variable `name`, None where it is unset or blank."""
    value = os.environ.get(name, "").strip()
    return Secret(name, value) if value else None


def value(name: str) -> str | None:
    """The value of `get(name)`, for SDKs that must have it; known to `redact` from then on."""
    secret = get(name)
    return secret.reveal() if secret else None


def redact(text: str) -> str:
    """`text` without any secret value that was read in this process."""
    for form in sorted(_known, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


def redact_logs() -> None:
    """Make every log record of this process, tracebacks included, pass through `redact`. Idempotent."""
    previous = logging.getLogRecordFactory()
    if getattr(previous, "redacts", False):
        return

    def factory(*args: object, **kwargs: object) -> logging.LogRecord:
        record = previous(*args, **kwargs)
        if _known:
            with contextlib.suppress(TypeError, ValueError):  # a bad format string is the handler's to report
                record.msg, record.args = redact(record.getMessage()), ()
            if record.exc_info and record.exc_info[0]:
                # formatters use exc_text where it is set instead of formatting exc_info themselves
                record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    factory.redacts = True
    logging.setLogRecordFactory(factory)


def _remember(value: str) -> None:
    if len(value) < _SHORTEST:
        return
    forms = {value, urllib.parse.quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]}
    with _lock:
        global _known
        _known = _known | forms
