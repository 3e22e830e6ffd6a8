"""Paths in a recipe: files beside it, or below the folder where the command runs."""

from __future__ import annotations

import re
from pathlib import Path

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def resolve(base: Path, given: str) -> Path:
    """`base / given`, without looking whether it exists.

    Raises ValueError, in plain words, for what is no plain path (a URL, `~`, a drive, a network share, a
    device name, control characters) and for a path that ends, links followed, neither in the recipe's
    folder `base` nor in the current one.
    """
    if not given.strip():
        raise ValueError("a path is empty; name a file, relative to the recipe's folder")
    if any(ord(char) < 32 or ord(char) == 127 for char in given):
        raise ValueError("a path may not hold control characters; rename the file")
    if given.startswith("~"):
        raise ValueError("`~` is not expanded; write a path relative to the recipe's folder")
    if _SCHEME.match(given):
        raise ValueError("a URL or a drive is not a path; name a file, relative to the recipe's folder")
    if "\\" in given or given.startswith("//"):
        raise ValueError("a network share or a backslash is not part of a path; write data/file.jsonl")
    if any(_DEVICE.fullmatch(part) for part in given.split("/")):
        raise ValueError("a path may not use the name of a device; rename the file")
    path = base / given
    try:
        end = path.resolve()
        allowed = end.is_relative_to(base.resolve()) or end.is_relative_to(Path.cwd())
    except (OSError, RuntimeError) as error:
        raise ValueError(f"a path cannot be followed ({error}); name another") from None
    if not allowed:
        raise ValueError("a path leaves both the recipe's folder and the current folder; put the file below "
                         "one of them, or run the command from a folder that holds it")
    return path


def existing_file(base: Path, given: str) -> Path:
    """`resolve`, for a file that must be there. Raises ValueError also where it is not."""
    path = resolve(base, given)
    try:
        if path.is_file():
            return path
        kind = "this is a folder, not a file" if path.is_dir() else "there is no such file"
    except OSError as error:
        kind = f"the file cannot be reached: {error.strerror}"
    raise ValueError(f"{kind}; a path is taken from the recipe's folder ({base})")
