"""The shipped recipe made small, and a sandbox's own words for how to point at it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from distillctl.recipe import yaml12
from distillctl.sandbox.server import Sandbox
from distillctl.types import JSON

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {"train": {"max_steps": 2, "batch_size": 4, "max_length": 2048}, "baseline": None,
         "evaluate": {"latency": {"items": 2, "warmup": 1}}}


def small_recipe(workspace: Path) -> None:
    """The shipped recipe with 60 of its rows, trained for two steps."""
    (workspace / "recipes/data").mkdir(parents=True)
    for name in ("routing.jsonl", "routing.teacher.jsonl"):
        lines = (RECIPES / "data" / name).read_text().splitlines(keepends=True)[:60]
        (workspace / "recipes/data" / name).write_text("".join(lines))
    shipped = yaml12.parse((RECIPES / "routing.yaml").read_text(), "routing.yaml").data
    (workspace / "recipes/routing.yaml").write_text(json.dumps(shipped | SMALL))


def exports(sandbox: Sandbox, key: str, **more: JSON) -> dict[str, str]:
    """The environment that a sandbox's own commands make, with more of its settings."""
    words = [shlex.split(line)[1] for line in sandbox.part.pointers(sandbox.url) if line.startswith("export")]
    found = dict(word.partition("=")[::2] for word in words)
    return {name: json.dumps(json.loads(text) | more) if name.startswith("DISTILLCTL")
            else key for name, text in found.items()}
