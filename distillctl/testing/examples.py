"""A small task for each kind, for suites that only need something to train on."""

from __future__ import annotations

from pathlib import Path

from distillctl.backend import TrainJob
from distillctl.recipe.models import ClassificationSpec, StructuredSpec, TextSpec, TrainSpec
from distillctl.store.files import digest_file, write_jsonl
from distillctl.task import Task, build_task
from distillctl.types import Request

WORDS = {"cat": ("purring", "whiskers", "kitten", "meow"), "dog": ("barking", "leash", "puppy", "bone")}


def example_job(folder: Path, kind: str, model: str, train: TrainSpec) -> TrainJob:
    """24 rows about cats and dogs, as a job for a task of `kind`."""
    prompt = "Is this note about a cat or a dog?\n\nNote: {{ note }}\n\nAnswer:"
    labels = list(WORDS)
    schema = {"type": "object", "properties": {"animal": {"enum": labels}}, "required": ["animal"]}
    task = build_task({
        "classification": lambda: ClassificationSpec(kind="classification", prompt=prompt, labels=labels),
        "structured": lambda: StructuredSpec(kind="structured", prompt=prompt, json_schema=schema),
        "text": lambda: TextSpec(kind="text", prompt=prompt)}[kind]())
    rows = []
    for n in range(24):
        label = labels[n % 2]
        note = f"{WORDS[label][n // 2 % 4]} near the {WORDS[label][(n // 2 + 1 + n // 8) % 4]}, day {n}"
        rows.append({"id": f"row-{n:02}", "messages": task.render({"note": note}),
                     "completion": task.target({"animal": label} if kind == "structured" else label),
                     "source": f"notes.jsonl:{n + 1}"})
    path = folder / "train.jsonl"
    write_jsonl(path, rows)
    return TrainJob("notes", task, train, model, path, None, len(rows), digest_file(path))


def example_requests(task: Task) -> list[Request]:
    """Six prompts of the example task, alternating between its labels."""
    notes = [f"{WORDS[label][n]} on the {WORDS[label][3 - n]}" for n in range(3) for label in WORDS]
    return [Request(f"ask-{n}", task.render({"note": note})) for n, note in enumerate(notes)]
