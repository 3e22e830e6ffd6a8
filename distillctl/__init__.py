"""distillctl: distil a bounded language-model task into a small student, and learn if it can take over."""

from __future__ import annotations

from typing import Any

__all__ = ["Run", "compare", "load_run", "run"]


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first used so that the command line starts quickly."""
    if name in __all__:
        from distillctl import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
