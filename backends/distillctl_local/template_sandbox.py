"""The process in which a model's chat template runs: one template, with little memory and no way to write.

A request comes on standard input, the reply goes to standard output, each as one JSON object; see
`distillctl_local.templates`, which starts this and holds it to a time. It imports jinja2 and nothing else
that is not Python's own, so that it starts in less than a tenth of a second.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TODAY = "01 January 2026"  # a template that writes the date would make another prompt than was trained


def main() -> None:
    """Render standard input's request: {"template", "variables", "longest" (characters), "memory" (bytes),
    "seconds"}. The reply holds the "text" or why it is "refused"."""
    request = json.load(sys.stdin)
    _bound(request["memory"], request["seconds"])
    try:
        reply = {"text": _render(request["template"], request["variables"], request["longest"])}
    except SecurityError as error:
        reply = {"refused": f"it reaches for Python's own parts ({error})"}
    except MemoryError:
        reply = {"refused": f"it needs more than {request['memory'] >> 20} MiB of memory"}
    except Exception as error:  # whatever a template does, it is the template's
        reply = {"refused": str(error) or type(error).__name__}
    json.dump(reply, sys.stdout)


def _bound(memory: int, seconds: float) -> None:
    """From here on: so much address space, so much processor time (should nobody be left to end this
    process), and not a byte into any file."""
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, math.ceil(seconds)),
                       (resource.RLIMIT_FSIZE, 0)):
        with suppress(ValueError, OSError):  # macOS has no limit on address space
            resource.setrlimit(what, (most, most))


def _render(template: str, variables: Mapping[str, Any], longest: int) -> str:
    pieces, size = [], 0
    for piece in _environment().from_string(template).generate(variables):
        size += len(piece)
        if size > longest:
            raise TemplateError(f"it writes more than {longest} characters around short messages")
        pieces.append(piece)
    return "".join(pieces)


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for: huggingface.co/docs/transformers/chat_templating_writing."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[loopcontrols, _Generation])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": lambda format: TODAY,
                     "namespace": _Namespace, "dict": lambda *pairs, **more: dict(*pairs, **more)}
    return made


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote; here it changes nothing."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """A namespace without names that mean something to Python or to the sandbox."""

    def __init__(self, /, *pairs: Any, **more: Any) -> None:
        values = dict(*pairs, **more)
        for name in values:
            _plain(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain(name)
        super().__setitem__(name, value)


def _plain(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}")


def _raise(message: object) -> None:
    raise TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """JSON as it is: Jinja's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


if __name__ == "__main__":
    main()
