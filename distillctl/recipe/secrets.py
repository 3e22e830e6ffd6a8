"""Keys do not belong in a recipe: it is kept, shared and committed.

Shapes of credentials as their issuers publish them. What matches is refused, and never shown.
"""

from __future__ import annotations

import re
from dataclasses import replace

from distillctl.errors import Problem

_SHAPES = re.compile(
    r"""
    \bsk-(?:[A-Za-z0-9_]+-){0,8}[A-Za-z0-9_]{16,}[A-Za-z0-9_-]*   # OpenAI, Anthropic, OpenRouter
    | \b(?:hf|gsk|tgp)_[A-Za-z0-9_-]{16,}                         # Hugging Face, Groq, Together
    | \bAIza[A-Za-z0-9_-]{30,}                                    # Google API key
    | \bya29\.[A-Za-z0-9_-]{20,}                                  # Google access token
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b                               # AWS
    | \bxox[a-z]-[A-Za-z0-9-]{10,}                                # Slack
    | \b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}               # GitHub
    | \beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*   # JSON web token
    | -----BEGIN\ [A-Z0-9\ ]*PRIVATE\ KEY                         # PEM
    | \b[Bb]earer\s+(?=\S*[0-9])[A-Za-z0-9._~+/=-]{16,}           # an Authorization header
    """,
    re.VERBOSE,
)
_SECRET_NAME = re.compile(r"key|token(?!s)|secret|passw|credential|auth", re.IGNORECASE)
_HIDDEN = "(hidden)"


def lines_with_keys(text: str) -> list[int]:
    """Numbers of the lines that hold something in the shape of a credential, comments included."""
    return [number for number, line in enumerate(text.splitlines(), 1) if _SHAPES.search(line)]


def holds_key(text: str) -> bool:
    """Whether a text holds something in the shape of a credential."""
    return _SHAPES.search(text) is not None


def names_secret(name: object) -> bool:
    """Whether a field of this name may hold a secret, so that its value must not be shown."""
    return isinstance(name, str) and _SECRET_NAME.search(name) is not None


def hide_keys(problem: Problem) -> Problem:
    """The problem with everything in the shape of a credential taken out of all its parts."""
    texts = {name: _SHAPES.sub(_HIDDEN, text)
             for name in ("what", "where", "field", "hint") if (text := getattr(problem, name))}
    if holds_key(repr(problem.value)):
        texts["value"] = _HIDDEN
    return replace(problem, **texts)
