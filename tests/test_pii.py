"""Personal data is named before it leaves this machine, and never shown whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distillctl import answering
from distillctl.api import open_recipe
from distillctl.canary import Canary
from distillctl.cli.main import cli
from distillctl.data import load_splits, pii
from distillctl.errors import DataError, MissingExtra, UsageError
from distillctl.select import requests_of
from distillctl.store.ledger import answer_key
from distillctl.types import Answer

SECRETS = {"an e-mail address": "jane.doe@example.com", "a phone number": "+44 20 7946 0958",
           "a social security number": "123-45-6789", "a payment card's number": "4111 1111 1111 1111",
           "an IP address": "192.168.17.3"}
RECIPE = """\
name: mail
task: {kind: classification, labels: [code, docs], prompt: "Route {{ text }}."}
data: {examples: rows.jsonl, expected: label, pii: PII}
teacher: {provider: openai, model: m, api_key_env: MY_KEY, price: {input: 1, output: 1}}
student: {model: linear}
backend: linear
"""
WORDS = ("abbey", "badge", "cabin", "dairy", "eagle", "fable", "gavel", "habit", "igloo", "jewel", "koala")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose prompts would leave this machine; line 3 of its data holds an address, which the prompt
    shows, and a card, which it does not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "sk-test-0123456789abcdef")
    rows = [{"text": f"the {word} {word[::-1]}", "label": ("code", "docs")[i % 2]}
            for i, word in enumerate(WORDS)]
    rows[2] |= {"text": "mail to jane.doe@example.com", "note": "4111 1111 1111 1111"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write(folder: Path, pii: str) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("PII", pii))


@pytest.mark.parametrize(("kind", "secret"), SECRETS.items())
def test_each_kind_is_found_and_masked(kind: str, secret: str) -> None:
    (found,) = pii.find_pii([("log.jsonl:7", "text", f"Reach me: {secret}, thanks")])
    assert (found.where, found.field, found.kind) == ("log.jsonl:7", "text", kind)
    assert secret not in str(found)
    assert str(len(secret)) in found.masked


def test_plain_text_holds_none() -> None:
    text = "Backup of 400 GB failed on 2026-05-29 after 3.5 h, see page 12345."
    assert not pii.find_pii([("a:1", "text", text)])


def test_the_look_out_stays_on_this_machine() -> None:
    code = ("import sys\n"
            "sys.addaudithook(lambda event, args: event.startswith('socket') and sys.exit(event))\n"
            "from distillctl.data.pii import find_pii; print(len(find_pii([('a', 'b', 'x@y.org')])))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"DATAFOG_TELEMETRY": "1"}, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_refuse_stops_before_anything_is_sent_and_names_file_and_line(workspace: Path) -> None:
    write(workspace, "refuse")
    with pytest.raises(UsageError) as caught:
        call("run", "recipe.yaml", "--yes")
    said = str(caught.value)
    assert "rows.jsonl:3 `text`: holds what looks like an e-mail address" in said
    assert "--set data.pii=warn" in said
    assert "jane.doe" not in said
    assert "card" not in said, "the prompt does not show it"


def test_warn_names_it_and_goes_on(workspace: Path) -> None:
    write(workspace, "warn")
    made = json.loads(call("plan", "recipe.yaml", "--json").stdout)
    assert not made["problems"]
    assert made["warnings"][-1].startswith("rows.jsonl:3 `text`: what looks like an e-mail address")
    assert "jane.doe" not in json.dumps(made)
    assert "e-mail address" in call("check", "recipe.yaml").stdout


def test_drift_refuses_to_send_it_again(workspace: Path) -> None:
    write(workspace, "refuse")
    ctx = open_recipe(workspace / "recipe.yaml")
    splits, _ = load_splits(ctx.recipe.data, ctx.task, ctx.loaded.resolve)
    requests = requests_of(ctx.task, [*splits["train"], *splits["dev"], *splits["test"]])
    with answering.teacher(ctx) as who:
        ctx.ledger.record_answers("earlier", "teacher", [
            (answer_key(who.predictor.identity, one), one, Answer("code")) for one in requests], False)
    shown = {line for split in ("train", "dev") for line in (one.source for one in splits[split])}
    assert "rows.jsonl:3" in shown, "else the split moved it to test: move the address to another row"
    with pytest.raises(UsageError, match="what looks like an e-mail address"):
        Canary(ctx, 100).asking()


@pytest.mark.parametrize(("setting", "teacher"), [
    ("off", {}), ("refuse", {"teacher": "{provider: openai, model: m, base_url: 'http://127.0.0.1:9/v1', "
                             "api_key_env: null, price: {input: 0, output: 0}}"})])
def test_what_nobody_asked_for_or_stays_here_is_not_looked_at(workspace: Path, setting: str, teacher: dict,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    write(workspace, setting)
    monkeypatch.setattr(pii, "available", lambda: False)
    more = [part for name, value in teacher.items() for part in ("--set", f"{name}={value}")]
    assert not json.loads(call("plan", "recipe.yaml", "--json", *more).stdout)["problems"]


def test_without_the_extra_a_recipe_that_asks_says_what_to_install(
        workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workspace, "warn")
    monkeypatch.setattr(pii, "available", lambda: False)
    with pytest.raises(MissingExtra, match=r"pip install 'distillctl\[pii\]'"):
        call("plan", "recipe.yaml")


def log(folder: Path) -> str:
    rows = [{"messages": [{"role": "user", "content": f"Route the {word} {i}"},
                          {"role": "assistant", "content": ("code", "docs")[i % 2]}]}
            for i, word in enumerate([*WORDS, "one of jane.doe@example.com"])]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "log.jsonl"


def test_an_import_looks_and_the_recipe_goes_on_looking(workspace: Path) -> None:
    done = call("import", log(workspace), "--from", "openai-chat", "-o", "out")
    assert "log.jsonl:12 `input`: what looks like an e-mail address" in done.stderr
    assert "jane.doe" not in done.output
    assert "\n  pii: warn " in (workspace / "out/recipe.yaml").read_text()


def test_an_import_that_refuses_writes_nothing(workspace: Path) -> None:
    with pytest.raises(DataError, match=r"log\.jsonl:12"):
        call("import", log(workspace), "--from", "openai-chat", "-o", "out", "--pii", "refuse")
    assert not (workspace / "out").exists()


def test_an_import_without_the_extra_says_that_nobody_looked(
        workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pii, "available", lambda: False)
    done = call("import", log(workspace), "--from", "openai-chat", "-o", "out")
    assert "not looked for personal data: pip install 'distillctl[pii]'" in done.stderr
    assert "# pii: warn" in (workspace / "out/recipe.yaml").read_text()
