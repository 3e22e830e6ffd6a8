"""What Hugging Face Jobs refuses in a request, and the hardware that it has.

Prices: https://huggingface.co/docs/hub/jobs-pricing (August 2026), US dollars per hour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distillctl.sandbox.wire import Refused
from distillctl.types import JSON

HARDWARE: dict[str, tuple[float, str, str, tuple[str, str, str] | None]] = {  # USD, CPU, RAM, GPU
    "cpu-basic": (0.01, "2 vCPU", "16 GB", None),
    "cpu-upgrade": (0.03, "8 vCPU", "32 GB", None),
    "t4-small": (0.40, "4 vCPU", "15 GB", ("T4", "1", "16 GB")),
    "l4x1": (0.80, "8 vCPU", "30 GB", ("L4", "1", "24 GB")),
    "a10g-small": (1.00, "4 vCPU", "15 GB", ("A10G", "1", "24 GB")),
    "a100-large": (2.50, "12 vCPU", "142 GB", ("A100", "1", "80 GB")),
    "h200": (5.00, "23 vCPU", "256 GB", ("H200", "1", "141 GB")),
}
_KNOWN = {"command", "arguments", "environment", "flavor", "secrets", "timeoutSeconds", "attempts", "labels",
          "volumes", "dockerImage", "spaceId", "expose", "ssh", "network", "resourceGroupId"}
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,100}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_SECONDS = 30 * 24 * 3600


def hardware_row(name: str) -> JSON:
    """One row of the hardware list."""
    hourly, cpu, ram, gpu = HARDWARE[name]
    micro = round(hourly * 1e6 / 60)
    return {"name": name, "prettyName": name, "cpu": cpu, "ram": ram, "ephemeralStorage": "50 GB",
            "accelerator": {"type": "gpu", "model": gpu[0], "quantity": gpu[1], "vram": gpu[2],
                            "manufacturer": "Nvidia"} if gpu else None,
            "unitCostMicroUSD": micro, "unitCostUSD": micro / 1e6, "unitLabel": "minute"}


def check_create(asked: Mapping[str, Any]) -> None:
    """Refuse a job that the service would refuse."""
    if unknown := sorted(set(asked) - _KNOWN):
        raise _bad(f'Unrecognized key: "{unknown[0]}"')
    command = asked.get("command")
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise _bad("command: expected a non-empty array of strings")
    if not isinstance(asked.get("arguments"), list):
        raise _bad("arguments: expected an array")
    if ("dockerImage" in asked) == ("spaceId" in asked):
        raise _bad("exactly one of dockerImage and spaceId is required")
    if asked.get("flavor") not in HARDWARE:
        raise _bad(f"flavor: invalid option {asked.get('flavor')!r}, expected one of {'|'.join(HARDWARE)}")
    seconds = asked.get("timeoutSeconds", 1800)
    if type(seconds) is not int or not 1 <= seconds <= _MOST_SECONDS:
        raise _bad("timeoutSeconds: expected a whole number of seconds")
    attempts = asked.get("attempts", 1)
    if type(attempts) is not int or not 1 <= attempts <= 10:
        raise _bad("attempts: expected a whole number from 1 to 10")
    _check_variables("environment", asked.get("environment"))
    _check_variables("secrets", asked.get("secrets", {}))
    for key, value in (asked.get("labels") or {}).items():
        if not _LABEL.fullmatch(key) or not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise _bad(f"labels: {key!r} and its value may hold letters, digits, - and _ only")
    for volume in asked.get("volumes") or ():
        _check_volume(volume)


def _check_variables(where: str, given: JSON) -> None:
    if not isinstance(given, dict):
        raise _bad(f"{where}: expected an object")
    for name, value in given.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(value, str):
            raise _bad(f"{where}: {name!r} is no variable with a text")


def _check_volume(volume: JSON) -> None:
    if not isinstance(volume, dict) or volume.get("type") not in ("model", "dataset"):
        raise _bad("volumes: this rehearsal mounts model and dataset repos")
    mount = volume.get("mountPath")
    if not isinstance(mount, str) or not mount.startswith("/") or mount == "/" or ".." in mount.split("/"):
        raise _bad("volumes: mountPath must be an absolute path other than /")
    if not isinstance(volume.get("source"), str) or volume["source"].count("/") != 1:
        raise _bad("volumes: source must be namespace/name")


def _bad(message: str) -> Refused:
    return Refused(400, message)
