"""`report_to`: who else is told of the training curve. Nobody is, unless the recipe names them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from distillctl.errors import Problem


@dataclass(frozen=True)
class _Tracker:
    """modules: one of them must be there. variables: of the environment, that its trainer gets too.
    address: the variable with the server's, and what holds where it is not set (None: this machine)."""

    modules: tuple[str, ...]
    variables: tuple[str, ...]
    address: tuple[str, str | None] = ("", None)


_TRACKERS = {
    "mlflow": _Tracker(("mlflow",), ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_EXPERIMENT_NAME",
                                     "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
                       ("MLFLOW_TRACKING_URI", None)),
    "tensorboard": _Tracker(("tensorboardX", "tensorboard"), ("TENSORBOARD_LOGGING_DIR",)),
    "wandb": _Tracker(("wandb",), ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY"),
                      ("WANDB_BASE_URL", "https://api.wandb.ai")),
}


def variables(report_to: Sequence[str]) -> list[str]:
    """Names of the environment variables that the trainer needs for these."""
    return [name for tracker in report_to for name in _TRACKERS[tracker].variables]


def hosts(report_to: Sequence[str]) -> list[str]:
    """The hosts that the curve and the settings are sent to; none for what stays on this machine."""
    addresses = []
    for name in report_to:
        variable, default = _TRACKERS[name].address
        address = os.environ.get(variable, default) or ""
        if urlsplit(address).scheme in ("http", "https"):
            addresses.append(urlsplit(address).hostname or address)
    return addresses


def problems(report_to: Sequence[str], *, offline: bool) -> list[Problem]:
    """What stands against reporting there."""
    found = []
    for name in report_to:
        modules = _TRACKERS[name].modules
        if not any(map(find_spec, modules)):
            found.append(Problem("is not installed", field="backends.local.report_to", value=name,
                                 hint=f"pip install {modules[0]}, or take the name out"))
        elif offline and hosts([name]):
            found.append(Problem(f"would send the training curve to {hosts([name])[0]}",
                                 field="backends.local.report_to", value=name,
                                 hint="leave --offline out, or take the name out"))
    return found
