"""A job's container, as far as this machine has one: the submitted command in a process of its own.

Image, `uv` and mounts are stood in for: requirements must be installed here in the wanted versions, a wheel
among them is unpacked and goes before what is installed, and a mount path stands for a folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from distillctl.errors import DataError
from distillctl.store.files import safe_join

UV_IMAGE = "ghcr.io/astral-sh/uv:"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES")
_WHEEL = re.compile(r"[\w.-]+(?:\[[\w,-]+\])? @ file://(/\S+\.whl)")
_PIN = re.compile(r"([\w.-]+)==(\S+)")
_ENDING_S = 10.0
_MOST_MEMBERS, _MOST_UNPACKED = 10_000, 256 << 20  # of a wheel: files and folders; bytes


class Unrunnable(Exception):
    """The container does not start; the message is what its log says."""


class Container:
    """Runs commands. One at a time."""

    def run(self, log: Path, request: Mapping[str, Any], mounts: Mapping[str, Mapping[str, Path]],
            scratch: Path, stop: threading.Event, variables: Mapping[str, str]) -> str:
        """Run a job's command to its end, writing its log as lines "<Unix seconds> <text>". Returns the
        status message of a failure, "" where it succeeded. Ends it once `stop` is set."""
        log.unlink(missing_ok=True)
        with log.open("a", encoding="utf-8") as file:
            try:
                folders = {mount: _mounted(files, scratch / f"mount-{number}")
                           for number, (mount, files) in enumerate(mounts.items())}
                command, wheels = _local_command(request, folders)
                path = [str(_unpacked(wheel, scratch)) for wheel in wheels]
            except Unrunnable as error:
                _say(file, str(error))
                return "Job failed with exit code: 2. Reason: Error"
            environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            environment |= {"HF_HOME": str(scratch / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1",
                            "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch), **variables,
                            "PYTHONPATH": os.pathsep.join(path)}
            return _run(command, environment, scratch, file, stop, request.get("timeoutSeconds", 1800))


def _mounted(files: Mapping[str, Path], folder: Path) -> Path:
    """A folder that shows a repo's files, read-only."""
    folder.mkdir(parents=True)
    for name, blob in files.items():
        path = safe_join(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(blob, path)
        path.chmod(0o444)
    return folder


def _local_command(request: Mapping[str, Any], folders: Mapping[str, Path]) -> tuple[list[str], list[Path]]:
    """The command as it runs here, and the wheels that it brings. Raises Unrunnable."""
    image = str(request.get("dockerImage"))
    if not image.startswith(UV_IMAGE):
        raise Unrunnable(f"this rehearsal has no image {image}, only {UV_IMAGE}*")
    words = [*request["command"], *request["arguments"]]
    if words[:2] != ["uv", "run"]:
        raise Unrunnable(f"exec: {words[0]!r}: this rehearsal runs `uv run` only")
    words, wheels = words[2:], []
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "--with-requirements" and words:
            wheels += _requirements(_here(words.pop(0), folders), folders)
        elif option != "--no-project":
            raise Unrunnable(f"error: unexpected argument {option!r} found")
    if not words or words[0] != "python":
        raise Unrunnable("error: Failed to spawn: this rehearsal has python only")
    return [sys.executable, *(_here(word, folders) for word in words[1:])], wheels


def _here(word: str, folders: Mapping[str, Path]) -> str:
    """An argument with a mount path as the folder that stands for it."""
    for mount, folder in folders.items():
        if word == mount or word.startswith(f"{mount}/"):
            return str(folder) + word.removeprefix(mount)
    return word


def _requirements(path: str, folders: Mapping[str, Path]) -> list[Path]:
    """The wheels of a requirements file; what else it names must be here. Raises Unrunnable."""
    wheels = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise Unrunnable(f"error: File not found: `{path}`") from None
    for line in filter(None, map(str.strip, lines)):
        if wheel := _WHEEL.fullmatch(line):
            wheels.append(Path(_here(wheel[1], folders)))
            if not wheels[-1].is_file():
                raise Unrunnable(f"error: Distribution not found at: file://{wheel[1]}")
        elif not (pin := _PIN.fullmatch(line)) or _installed(pin[1]) != pin[2]:
            raise Unrunnable(f"error: No solution found when resolving `--with` dependencies: {line} is not "
                             f"what this machine has")
    return wheels


def _installed(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name).partition("+")[0]
    return None


def _unpacked(wheel: Path, scratch: Path) -> Path:
    """The folder that a wheel's files were written to, member by member. Raises Unrunnable for an archive
    that is no wheel of ours, before anything of it is written."""
    folder = scratch / wheel.stem
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in _checked(archive.infolist(), folder):
                path = folder / member.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, path.open("xb") as file:
                    shutil.copyfileobj(packed, file)  # zipfile ends at the size that was announced
    # NotImplementedError is zipfile's word for a compression that it cannot undo
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, DataError, OSError) as error:
        raise Unrunnable(f"error: Failed to unzip {wheel.name}: {error}") from None
    return folder


def _checked(members: list[zipfile.ZipInfo], folder: Path) -> list[zipfile.ZipInfo]:
    """An archive's files, if they are few and small enough, plain, of distinct names within `folder`.
    Raises BadZipFile, DataError."""
    files = [member for member in members if not member.is_dir()]
    if len(members) > _MOST_MEMBERS or sum(member.file_size for member in files) > _MOST_UNPACKED:
        raise zipfile.BadZipFile(f"more than {_MOST_MEMBERS} members or {_MOST_UNPACKED} bytes")
    for member in files:
        safe_join(folder, member.filename)
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise zipfile.BadZipFile(f"{member.filename} is no plain file")
    if len({member.filename.casefold() for member in files}) < len(files):
        raise zipfile.BadZipFile("two members have one name, or differ in capitals alone")
    return files


def _run(command: Sequence[str], environment: Mapping[str, str], scratch: Path, log: IO[str],
         stop: threading.Event, seconds: float) -> str:
    process = subprocess.Popen(command, env=dict(environment), cwd=scratch, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    reader = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
    reader.start()
    until, late = time.monotonic() + seconds, False
    while process.poll() is None and not stop.wait(0.05):
        if time.monotonic() > until:
            late = True
            break
    _end(process)
    reader.join(_ENDING_S)
    if late:
        return "Job timeout"
    return "" if process.returncode == 0 else (
        f"Job failed with exit code: {process.returncode}. Reason: Error")


def _end(process: subprocess.Popen) -> None:
    """End what runs, and all that it started."""
    for sign, patience in ((signal.SIGTERM, _ENDING_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _copy(source: IO[bytes] | None, log: IO[str]) -> None:
    with source or contextlib.nullcontext(()) as lines:
        for line in lines:
            _say(log, line.decode("utf-8", "replace").rstrip("\r\n"))


def _say(log: IO[str], text: str) -> None:
    log.write(f"{time.time()} {text}\n")
    log.flush()
