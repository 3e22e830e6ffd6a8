"""`distillctl doctor`: what this machine has, before any work. Imports nothing heavy and sends nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "TOGETHER_API_KEY", "HF_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS")


@dataclass(frozen=True)
class Check:
    """One line of the doctor: OK, a warning with its fix, or a plain fact."""

    level: Literal["ok", "warn", "info"]
    what: str
    fix: str | None = None


def examine(root: Path) -> list[Check]:
    """Look at Python, machine, packages by extra, credentials by name, and the workspace `root`."""
    return [*_python(), *_machine(root), *_extras(), *_credentials()]


def _python() -> list[Check]:
    return [Check("ok", f"Python {platform.python_version()} at {sys.prefix}")]


def _machine(root: Path) -> list[Check]:
    checks = [Check("info", f"{processor_name()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB memory")]
    gpu = gpu_name()
    checks.append(Check("ok", gpu) if gpu else Check(
        "info", "no GPU: small students train on the CPU; larger ones at a hosted backend"))
    free = shutil.disk_usage(root).free / 2**30
    checks.append(Check("ok", f"{free:.0f} GiB free in {root}") if free > 5 else Check(
        "warn", f"{free:.1f} GiB free in {root}", "a student with its checkpoints needs about 5 GiB"))
    if not os.access(root, os.W_OK):
        checks.append(Check("warn", f"{root} cannot be written", "run in a folder of your own"))
    return checks


def _extras() -> list[Check]:
    checks = []
    for extra, names in packages_by_extra().items():
        found = {name: installed_version(name) for name in names}
        missing = [name for name, number in found.items() if number is None]
        listed = ", ".join(f"{name} {number}" for name, number in found.items() if number)
        if missing:
            checks.append(Check("info", f"{extra}: not installed ({', '.join(missing)})",
                                f"pip install 'distillctl[{extra}]'"))
        else:
            checks.append(Check("ok", f"{extra}: {listed}"))
    return checks


def _credentials() -> list[Check]:
    present = [name for name in KEYS if os.environ.get(name)]
    absent = [name for name in KEYS if name not in present]
    checks = [Check("ok", f"{name} is set") for name in present]
    if absent:
        checks.append(Check("info", f"not set: {', '.join(absent)}",
                            "only hosted teachers and backends need them; a recorded teacher needs none"))
    return checks


def packages_by_extra() -> dict[str, list[str]]:
    """Distribution names by extra, as this installation of distillctl declares them."""
    extras: dict[str, list[str]] = {}
    for line in requires("distillctl") or []:
        requirement, _, marker = line.partition(";")
        if "extra ==" not in marker:
            continue
        extra = marker.split("extra ==")[1].strip().strip("'\"")
        name = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]
        if extra not in ("dev", "all") and name != "distillctl":
            extras.setdefault(extra, []).append(name)
    return extras


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def processor_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float:
    """The machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


@cache
def gpu_name() -> str | None:
    """Name and memory of the first NVIDIA GPU, None where there is none (asked without torch)."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        asked = subprocess.run([tool, "--query-gpu=name,memory.total", "--format=csv,noheader"],
                               capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = asked.stdout.strip().splitlines()
    return lines[0].strip() if asked.returncode == 0 and lines else None
