"""The recipe that an import writes."""

from __future__ import annotations

import json
from typing import Literal

from distillctl.recipe.models import ClassificationSpec, TextSpec

_HEAD = """\
# yaml-language-server: $schema=recipe.schema.json
#
# Made by `distillctl import` from {source}. The prompt is what all calls share; `input` is what differs.
# There are no gold answers in a log: the teacher's answers are the measure. To measure against the truth,
# give every row of data/examples.jsonl a field with the right answer and name it under `data.expected`.

name: {name}

task:
  kind: {kind}
"""
_TAIL = """
data:
  examples: data/examples.jsonl
  split: {{train: 0.6, dev: 0.15, test: 0.25, seed: 1}}
  {pii}

teacher:
  provider: recorded           # the answers of the log; nothing is asked
  outputs: data/teacher.jsonl
{model}
student:
  model: smollm2-135m            # a Hub id, a local folder, or this small model that comes with the demo

backend: local                 # who trains; `distillctl backends` lists them

verdict: {{max_drop: 0.05, marginal_drop: 0.10, min_speedup: 2}}
budget: {{max_usd: 5}}
"""


def recipe_text(name: str, spec: ClassificationSpec | TextSpec, source: str, model: str | None,
                look_for_pii: Literal["off", "warn", "refuse"]) -> str:
    """A recipe for this task beside its data. source: the log's file name; model: the one of most answers;
    look_for_pii: the recipe's `data.pii`."""
    text = _HEAD.format(source=_quoted(source), name=name, kind=spec.kind)
    if isinstance(spec, ClassificationSpec):
        text += f"  labels: [{', '.join(map(_quoted, spec.labels))}]\n"
    if spec.system is not None:
        text += f"  system: {_block(spec.system)}\n"
    text += f"  prompt: {_block(spec.prompt)}\n"
    pii = f"pii: {look_for_pii}" if look_for_pii != "off" else "# pii: warn"
    return text + _TAIL.format(pii=f"{pii:<29}# look for personal data before any leaves this machine",
                               model=f"  model: {_quoted(model)}\n" if model else "")


def _quoted(text: str) -> str:
    """A YAML double-quoted scalar; what was logged cannot end it."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)


def _block(text: str) -> str:
    """A literal block where it keeps the text exactly, for people; else a quoted scalar."""
    lines = text.split("\n")
    plain = all(char.isprintable() or char == "\n" for char in text)
    if not plain or not lines[0].strip() or text[0] == " " or not lines[-1].strip():
        return _quoted(text)
    return "|-\n" + "\n".join(f"    {line}" if line else "" for line in lines)
