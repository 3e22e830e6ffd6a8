"""What `distillctl init` lays down: a recipe that runs as it is, a little data, and the recipe's schema."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from distillctl.errors import Problem, UsageError
from distillctl.recipe.schema import schema_text
from distillctl.store.files import write_text

Kind = Literal["classification", "structured", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def scaffold(kind: Kind, folder: Path) -> list[Path]:
    """Write a recipe for a task kind, with example data and recorded answers, and name the files.

    recipe.yaml, recipe.schema.json, data/examples.jsonl and data/teacher.jsonl under `folder`, which is
    made where it is missing. Raises UsageError, with nothing written, where one of them is there already.
    """
    if kind not in KINDS:
        raise UsageError(Problem("there is no such task kind", value=kind,
                                 hint=f"one of: {', '.join(KINDS)}"))
    source = resources.files("distillctl.recipe") / "templates" / kind
    texts = {
        "recipe.yaml": (source / "recipe.yaml").read_text(encoding="utf-8"),
        "recipe.schema.json": schema_text(),
        "data/examples.jsonl": (source / "examples.jsonl").read_text(encoding="utf-8"),
        "data/teacher.jsonl": (source / "teacher.jsonl").read_text(encoding="utf-8"),
    }
    paths = {folder / name: text for name, text in texts.items()}
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if there:
        raise UsageError(*(Problem("is there already and is not overwritten", where=str(path),
                                   hint="choose another folder, or move the file away") for path in there))
    for path, text in paths.items():
        write_text(path, text)
    return list(paths)
