"""Rehearsals of hosted training: a provider on loopback, with the real wire format and a real student.

`server.Sandbox` runs one provider. A provider is a `wire.ProviderPart`: its routes, its validation and its
words; everything else (HTTP, faults, state that outlives restarts, the job's life, the training and the
answers) is shared. `part` finds one by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distillctl.sandbox.wire import ProviderPart

PARTS = {
    "hf-jobs": "distillctl.sandbox.hf_jobs:HfJobsPart",
    "openai": "distillctl.sandbox.openai:OpenAIPart",
    "together": "distillctl.sandbox.together:TogetherPart",
    "vertex": "distillctl.sandbox.vertex:VertexPart",
}


def part(name: str) -> type[ProviderPart]:
    """The provider's part; `name` is a key of PARTS."""
    module, _, found = PARTS[name].partition(":")
    return getattr(import_module(module), found)
