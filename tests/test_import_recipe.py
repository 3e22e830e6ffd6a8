"""From a log to a folder that `check` and `run` take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.exports import EXPORTS

from distillctl.cli.main import cli
from distillctl.errors import DataError, UsageError
from distillctl.importing import import_log
from distillctl.importing.labels import infer_labels
from distillctl.importing.prompt import Template, common_template
from distillctl.recipe.load import load_recipe

WORDS = ("main", "init", "README", "install", "weather", "poem", "class", "guide", "parse", "licence")
LABELS = ("code", "docs", "skip")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, standalone_mode=False)


def chats(count: int = 60, before: str = "Pick one.\n\nQuestion: ", after: str = "\n\nMode:",
          system: str = "Route it.") -> list[dict]:
    return [{"messages": [
        {"role": "system", "content": system},
        {"role": "user", "content": f"{before}Where is the {WORDS[i % 10]} of part {i} kept?{after}"},
        {"role": "assistant", "content": LABELS[i % 3]}]} for i in range(count)]


def write(folder: Path, rows: list, name: str = "log.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rendered(folder: Path) -> list:
    loaded = load_recipe(folder / "recipe.yaml")
    rows = [json.loads(line) for line in (folder / "data/examples.jsonl").read_text().splitlines()]
    return [loaded.task.render(row) for row in rows]


def test_the_recipe_asks_exactly_what_was_asked(tmp_path: Path) -> None:
    rows = chats()
    import_log(write(tmp_path, rows), "openai-chat", tmp_path / "out")
    assert rendered(tmp_path / "out") == [row["messages"][:2] for row in rows]


def test_what_all_calls_share_is_the_prompt(tmp_path: Path) -> None:
    done = import_log(write(tmp_path, chats()), "openai-chat", tmp_path / "out")
    assert done.prompt == "Pick one.\n\nQuestion: Where is the {{ input }} kept?\n\nMode:"
    assert (done.examples, done.labels) == (60, list(LABELS))


@pytest.mark.parametrize("before", ["Use {{ braces }} {% if %} {# so #} {: ", "{{{\r{% x",
                                    "CRLF\r\nand é 😀: ", "  \t- tab: ",
                                    "a: b # no comment\n'\"\\ ", "\u2028\x07 odd "])
def test_text_that_looks_like_template_or_yaml_code_stays_text(tmp_path: Path, before: str) -> None:
    rows = chats(before=f"x{before}", system=f"s{before}y")
    import_log(write(tmp_path, rows), "openai-chat", tmp_path / "out")
    assert rendered(tmp_path / "out") == [row["messages"][:2] for row in rows]


def test_no_word_is_split_between_prompt_and_input() -> None:
    found = common_template(None, ["Q: what?\nA:", "Q: where?\nA:", "Q: why?\nA:"])
    assert (found.before, found.after) == ("Q: ", "\nA:")


def test_beginning_and_end_do_not_overlap_in_the_shortest_prompt() -> None:
    found = common_template(None, ["a a a", "a a a a"])
    assert found == Template(None, found.before, found.after)
    assert len(found.before) + len(found.after) <= len("a a a")


def test_repeated_prompts_are_merged_and_contradictions_counted(tmp_path: Path) -> None:
    rows = chats()
    other = json.loads(json.dumps(rows[0]))
    other["messages"][2]["content"] = "skip"
    done = import_log(write(tmp_path, [other, *rows, rows[0], rows[1]]), "openai-chat", tmp_path / "out")
    assert (done.examples, done.repeats, done.contradicting) == (60, 3, 1)
    first = json.loads((tmp_path / "out/data/teacher.jsonl").read_text().splitlines()[0])
    assert first["output"] == "code"  # said twice, "skip" once


def test_rows_that_cannot_be_used_are_named_with_their_lines(tmp_path: Path) -> None:
    log = write(tmp_path, ["not json", *chats(), {"messages": []},
                           {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant",
                            "content": "Hello"}, {"role": "user", "content": "And?"},
                            {"role": "assistant", "content": "So."}]}])
    done = import_log(log, "openai-chat", tmp_path / "out")
    assert [problem.where for problem in done.skipped] == [f"{log}:1", f"{log}:62", f"{log}:63"]
    assert "conversation of 3 turns" in done.skipped[2].what


def test_calls_with_another_system_prompt_are_left_out_and_told(tmp_path: Path) -> None:
    strange = chats(3, system="Another task.")
    done = import_log(write(tmp_path, [*chats(), *strange]), "openai-chat", tmp_path / "out")
    assert done.examples == 60
    assert len(done.skipped) == 3


def test_a_log_of_many_tasks_is_refused(tmp_path: Path) -> None:
    rows = [row for i in range(60) for row in chats(1, system=f"Task {i}.")]
    with pytest.raises(DataError, match="60 different system prompts"):
        import_log(write(tmp_path, rows), "openai-chat", tmp_path / "out")


def test_too_little_is_refused_with_the_reasons_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.jsonl:6.*no prompt"):
        import_log(write(tmp_path, [*chats(5), {}]), "openai-chat", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    import_log(write(tmp_path, chats()), "openai-chat", tmp_path / "out")
    with pytest.raises(UsageError, match="not overwritten"):
        import_log(tmp_path / "log.jsonl", "openai-chat", tmp_path / "out")


@pytest.mark.parametrize(("answers", "labels"), [
    (["Yes.", "no", "yes", "yes", "no"] * 3, ["yes", "no"]),
    (["yes"] * 20, None),
    ([f"answer {i}" for i in range(30)], None),
    (["a", "a long answer " * 5] * 20, None),
])
def test_labels_are_few_short_and_repeated_answers(answers: list[str], labels: list[str] | None) -> None:
    assert infer_labels(answers) == labels


def test_free_text_becomes_a_text_recipe(tmp_path: Path) -> None:
    done = import_log(write(tmp_path, chats()), "openai-chat", tmp_path / "out", kind="text")
    assert done.labels is None
    assert load_recipe(tmp_path / "out/recipe.yaml").recipe.task.kind == "text"


def test_labels_that_are_wanted_and_not_there_stop_before_anything_is_written(tmp_path: Path) -> None:
    rows = chats()
    for i, row in enumerate(rows):
        row["messages"][2]["content"] = f"answer {i}"
    with pytest.raises(UsageError, match="--labels"):
        import_log(write(tmp_path, rows), "openai-chat", tmp_path / "out", kind="classification")
    assert not (tmp_path / "out").exists()


# --- five formats, from the log to a verdict ------------------------------------------------------------


@pytest.mark.parametrize("source", ["openai-stored", "langfuse", "langsmith", "litellm", "csv"])
def test_an_imported_log_is_a_recipe_that_runs(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    name, content = EXPORTS[source]()
    log = tmp_path / name
    log.write_text(content)
    assert call("import", str(log), "--from", source, "-o", "mine").exit_code == 0
    assert call("check", "mine/recipe.yaml").exit_code == 0
    done = call("run", "mine/recipe.yaml", "--backend", "linear", "--json")
    assert done.exit_code == 0
    assert not json.loads(done.stdout)["metrics"]["gold"]
