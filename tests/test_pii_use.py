"""A student at work: rows with personal data do not leave this machine where the recipe refuses that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.chat import predictor_for

from distillctl import predict as work
from distillctl.collect import CollectOptions
from distillctl.data import pii
from distillctl.errors import MissingExtra
from distillctl.progress import Silent
from distillctl.recipe.models import TextSpec
from distillctl.store.ledger import Ledger
from distillctl.task import build_task
from distillctl.testing.chat_server import ChatServer, Reply
from distillctl.using import Student

pytest.importorskip("datafog", reason="needs the `pii` extra")

TASK = build_task(TextSpec(kind="text", prompt="Answer as help@ours.example would. {{ text }}"))
ROWS = ["where is the parser?", "mail to jane.doe@example.com", "who calls it?"]


@dataclass
class Told(Silent):
    """Keeps what is told."""

    notes: list[str] = field(default_factory=list)

    def note(self, text: str, level: str = "info") -> None:
        self.notes.append(text)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(lambda asked: Reply("there")) as server:
        yield server


def predict(server: ChatServer, folder: Path, refuse: bool) -> tuple[list[dict], list[str]]:
    """The lines that a student at `server` gives for `ROWS`, and what was told."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    told = Told()
    with Ledger(folder / "ledger.db") as ledger:
        student = Student("a/run", TASK, predictor_for(server), None, CollectOptions(), ledger,
                          guard=pii.Guard(refuse, TASK.spec.prompt))
        work.predict(student, work.read_requests(source, TASK, None), folder / "out.jsonl", told)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()], told.notes


def test_a_row_with_personal_data_is_not_sent_and_its_line_says_why(server: ChatServer,
                                                                    tmp_path: Path) -> None:
    lines, told = predict(server, tmp_path, refuse=True)
    assert [line["output"] for line in lines] == ["there", None, "there"]
    assert lines[1]["error"].startswith(f"{tmp_path}/in.jsonl:2: not sent: it holds what looks like an e-")
    assert "jane.doe" not in json.dumps([*lines, *told]) + "".join(asked.prompt for asked in server.asked)
    assert told == ["personal data: prompts held what looks like an e-mail address (1); they were not sent"]


def test_a_warning_sends_all_and_counts(server: ChatServer, tmp_path: Path) -> None:
    lines, told = predict(server, tmp_path, refuse=False)
    assert [line["output"] for line in lines] == ["there"] * 3
    assert told == ["personal data: prompts held what looks like an e-mail address (1); they were sent"]


def test_the_recipe_s_own_words_are_no_finding() -> None:
    guard = pii.Guard(True, TASK.spec.prompt)
    assert guard.why_kept(TASK.render({"text": "why?"}, "x:1")) is None
    assert guard.told() is None


def test_without_the_extra_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pii, "available", lambda: False)
    with pytest.raises(MissingExtra, match=r"pip install 'distillctl\[pii\]'"):
        pii.Guard(True, "")
