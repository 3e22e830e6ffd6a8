"""Atomic files, digests and JSONL: the only place in the core that opens a file for writing.

Invariant: a file under its final name is whole. Content is written beside it, flushed to disk, renamed
over it, and the folder is flushed; a crash leaves the old file or the new one, and at most a `.tmp-*`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from distillctl.errors import DataError, Problem, StorageError
from distillctl.types import JSON

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file that becomes `path` when the block ends without an exception.

    mode: "w" (UTF-8 text, newlines kept as written) or "wb". Raises StorageError with the path when the
    disk is full or the folder cannot be written; the old file is then intact.
    """
    temporary = path.parent / f".tmp-{path.name}-{secrets.token_hex(6)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8",
                            newline=None if "b" in mode else "\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(Problem(f"cannot write: {error.strerror or error}", where=str(path))) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, which other code wrote, before it is renamed."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, value: JSON) -> None:
    """Write indented JSON atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[JSON]) -> int:
    """Write rows as JSON lines atomically; returns how many."""
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_json(path: Path) -> JSON:
    """Read a JSON file. Raises StorageError when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(Problem(f"cannot be read: {error}", where=str(path))) from error


def read_jsonl(path: Path) -> Iterator[JSON]:
    """Rows of a JSONL file that this program wrote. Raises StorageError with file:line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise StorageError(Problem(f"not JSON: {error}", where=f"{path}:{number}")) from error
    except OSError as error:
        raise StorageError(Problem(f"cannot be read: {error.strerror}", where=str(path))) from error


def digest_file(path: Path) -> str:
    """"sha256:<hex>" of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: JSON) -> str:
    """"sha256:<hex>" of a JSON value, the same for equal values whatever their key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def digest_tree(folder: Path) -> dict[str, str]:
    """Digest of every regular file under `folder`, by its POSIX path relative to it, sorted."""
    return {path.relative_to(folder).as_posix(): digest_file(path)
            for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}


def safe_join(root: Path, relative: str) -> Path:
    """`root / relative`, refused (DataError) where it is absolute, leaves `root` or holds a NUL.

    For names that came from a provider, a model folder or a data file.
    """
    candidate = root / relative
    if not relative or "\0" in relative or Path(relative).is_absolute() or not (
            candidate.resolve().is_relative_to(root.resolve())):
        raise DataError(Problem("a path that leaves its folder is refused", where=str(root), value=relative))
    return candidate


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an OS lock on `path`; the system frees it when the process ends, however it ends.

    Raises StorageError naming the holder when another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise StorageError(Problem(f"in use by another process ({file.read().strip() or 'unknown'})",
                                       where=str(path), hint="wait for it, or stop that process")) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield
