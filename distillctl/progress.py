"""How long work tells what it is doing. The pipeline reports; the command line or a notebook shows."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives what happens; must return quickly and not raise."""

    def stage(self, name: str, why: str) -> None:
        """A stage starts; `why` it runs rather than being reused."""

    def reused(self, name: str) -> None:
        """A stage's outputs from an earlier run are still good."""

    def progress(self, done: float, total: float | None, text: str) -> None:
        """The running stage has got this far; `text` has rate, spend and time left."""

    def note(self, text: str, level: str = "info") -> None:
        """Something worth a line of its own; level is info, warning or error."""

    def done(self, name: str, seconds: float) -> None:
        """The stage that started last is finished."""


class Silent:
    """Shows nothing."""

    def stage(self, name: str, why: str) -> None: ...
    def reused(self, name: str) -> None: ...
    def progress(self, done: float, total: float | None, text: str) -> None: ...
    def note(self, text: str, level: str = "info") -> None: ...
    def done(self, name: str, seconds: float) -> None: ...


def seconds_text(seconds: float) -> str:
    """A duration for people: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"
