"""A small valid recipe in a folder of its own, to be bent by tests."""

from __future__ import annotations

from pathlib import Path

GOOD = """\
name: tiny
task:
  kind: classification
  labels: [yes, no]
  prompt: |
    Is this a question?

    {{ text }}
data:
  examples: data/examples.jsonl
  expected: label
teacher:
  provider: recorded
  outputs: data/teacher.jsonl
student: {model: smollm2-135m}
"""

STRUCTURED = GOOD.replace("""  kind: classification
  labels: [yes, no]
""", """  kind: structured
  json_schema: {type: object, properties: {answer: {type: string}, pages: {type: array}}}
""").replace("expected: label", "expected: {answer: label}")

TEXT = GOOD.replace("  kind: classification\n  labels: [yes, no]\n", "  kind: text\n").replace(
    "expected: label", "expected: {text: label}")


def write_recipe(folder: Path, text: str | bytes = GOOD) -> Path:
    """A recipe with the data that it names; returns its path."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "examples.jsonl").write_text('{"id": "1", "text": "Why?", "label": "yes"}\n')
    (folder / "data" / "teacher.jsonl").write_text('{"id": "1", "output": "yes"}\n')
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
