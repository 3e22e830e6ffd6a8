"""Making text from models, providers and data files harmless to look at.

`clean` is for terminals: what could move the cursor, change colours, reorder or hide text is taken out.
`visible` is for pages: the same characters are shown as escapes, since a reader who looks for the cause of
an error must see them. Markup is not handled here: the HTML templates escape it.
"""

from __future__ import annotations

import re

# Whole escape sequences with their payload (ECMA-48): OSC, DCS, SOS, PM and APC strings up to their
# terminator or the end of the line; CSI sequences; two-character escapes.
_SEQUENCE = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c|(?=\n)|(?=\x1b)|$)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?")
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_HIDDEN = "\u00ad\u180e\u200b-\u200d\u2028\u2029\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_SURROGATE = "\ud800-\udfff"  # lone ones: they cannot be written as UTF-8
_UNSEEN = re.compile(f"[{_CONTROL}{_BIDI}{_HIDDEN}]")
_SURROGATES = re.compile(f"[{_SURROGATE}]")
# Joiners belong to some scripts and do no harm on a page.
_SHOWN_AS_ESCAPE = re.compile(
    f"[{_CONTROL}{_BIDI}{_SURROGATE}\u00ad\u180e\u200b\u2028\u2029\u2060-\u2064\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]")


def clean(text: str) -> str:
    """`text` for a terminal: no escape sequences, control, direction or zero-width characters.

    Newlines and tabs stay; lone surrogates become U+FFFD.
    """
    return _SURROGATES.sub("\ufffd", _UNSEEN.sub("", _SEQUENCE.sub("", text)))


def visible(text: str) -> str:
    """`text` for a page: control, direction and hidden characters are written as `\\x1b`, `\\u202e`."""
    return _SHOWN_AS_ESCAPE.sub(_escape, text.replace("\r\n", "\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of `text`; what was left off is counted in its place."""
    if len(text) <= limit:
        return text
    return f"{text[:limit].rstrip()} … ({len(text) - limit:,} more characters)"
