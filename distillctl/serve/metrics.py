"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meters:
    """The server's own counters. labels: of the task, so that no answer can invent a time series."""

    def __init__(self, run: str, labels: tuple[str, ...], under_way: Callable[[], int],
                 personal_data: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._labels = frozenset(labels)
        Info("distillctl_student", "The run that is served.", registry=registry).info({"run": run})
        self.requests = Counter("distillctl_requests", "Chat completions, by HTTP status.", ["status"],
                                registry=registry)
        self.seconds = Histogram("distillctl_request_seconds", "Time from a request's head to its answer.",
                                 buckets=_SECONDS, registry=registry)
        self.batch = Histogram("distillctl_batch_size", "Requests that were answered together.",
                               buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512), registry=registry)
        self._tokens = Counter("distillctl_tokens", "Tokens of prompts (in) and answers (out).", ["kind"],
                               registry=registry)
        self._answers = Counter("distillctl_answers", "Answers by label; (other), (unreadable).", ["value"],
                                registry=registry)
        self.answered_by = Counter("distillctl_answered_by", "Answers by who gave them: student, teacher.",
                                   ["who"], registry=registry)
        self.spent = Counter("distillctl_spent_usd", "US dollars that answers are known to have cost.",
                             registry=registry)
        Gauge("distillctl_under_way", "Requests that wait or are being answered.",
              registry=registry).set_function(under_way)
        Gauge("distillctl_personal_data", "What looks like personal data in prompts for the network, since "
              "the start; with data.pii: refuse they were not sent.",
              registry=registry).set_function(personal_data)

    def answered(self, value: object, tokens_in: int | None, tokens_out: int | None) -> None:
        """Count one answer. value: as the task reads it, None where it cannot."""
        known = isinstance(value, str) and value in self._labels
        self._answers.labels("(unreadable)" if value is None else value if known else "(other)").inc()
        self._tokens.labels("in").inc(tokens_in or 0)
        self._tokens.labels("out").inc(tokens_out or 0)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
