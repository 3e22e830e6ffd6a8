"""`distillctl predict`: every row a line, in order; what is answered is never asked again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.finished import RECIPES, Echo, linear_run

from distillctl import api
from distillctl import predict as work
from distillctl.cli.main import cli
from distillctl.collect import CollectOptions
from distillctl.context import Context
from distillctl.errors import DataError, MissingExtra, UsageError
from distillctl.progress import Silent
from distillctl.using import Student, probabilities


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return linear_run(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def source(run: Context, tmp_path: Path) -> Path:
    """The test items, without what is expected of them."""
    return write(tmp_path / "in.jsonl", [{"id": e.id, **e.fields} for e in run.examples("test")])


def write(path: Path, rows: list[dict | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def predict(run: Context, source: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, [
        "predict", run.run_name, "--workspace", str(run.workspace.root), "-i", str(source), "-o", str(output),
        *more], catch_exceptions=False)


def summary(done: Result) -> dict:
    return json.loads(done.stdout)


def test_the_answers_are_those_that_were_evaluated(run: Context, source: Path, tmp_path: Path) -> None:
    assert predict(run, source, tmp_path / "out.jsonl").exit_code == 0
    found = lines(tmp_path / "out.jsonl")
    assert [(line["id"], line["output"], line["value"]) for line in found] == [
        (p.id, p.answer.output, p.value) for p in run.predictions("student", "test")]


def test_probabilities_are_at_the_temperature_of_dev(run: Context, source: Path, tmp_path: Path) -> None:
    metrics = json.loads(run.path("metrics.json").read_text())
    student = next(e for e in metrics["evaluations"] if e["role"] == "student")
    temperature = student["calibration"]["temperature"]
    assert temperature != 1
    predict(run, source, tmp_path / "out.jsonl")
    first, was = lines(tmp_path / "out.jsonl")[0], run.predictions("student", "test")[0]
    assert first["probabilities"] == pytest.approx(
        probabilities(was.answer.label_logprobs, temperature), abs=1e-5)
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert next(iter(first["probabilities"])) == first["value"]


def test_csv_is_read_too(run: Context, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,question,conversation_context\n7,"Where is ""main""?",\n')
    assert predict(run, tmp_path / "in.csv", tmp_path / "out.jsonl").exit_code == 0
    assert lines(tmp_path / "out.jsonl")[0]["id"] == "7"


def test_bad_rows_get_an_error_with_their_line_and_cost_no_other_its_answer(
        run: Context, source: Path, tmp_path: Path) -> None:
    rows = source.read_text().splitlines()
    rows[2:4] = ["{half a row", json.dumps({"id": "lacking"})]
    done = predict(run, write(tmp_path / "bad.jsonl", rows), tmp_path / "out.jsonl", "--json")
    assert done.exit_code == 1
    found = lines(tmp_path / "out.jsonl")
    assert len(found) == len(rows)
    assert [n for n, line in enumerate(found) if "error" in line] == [2, 3]
    assert f"{tmp_path / 'bad.jsonl'}:3: is not JSON" in found[2]["error"]
    assert found[3]["id"] == "lacking" and "bad.jsonl:4" in found[3]["error"]
    assert summary(done)["failed"] == 2
    assert "bad.jsonl:4" in done.stderr


def test_a_file_of_bad_rows_alone_is_refused_before_anything_is_written(run: Context, tmp_path: Path) -> None:
    wrong = write(tmp_path / "in.jsonl", [{"text": str(n)} for n in range(100)])
    with pytest.raises(DataError, match=r"in\.jsonl:1: .*'conversation_context' is undefined"):
        predict(run, wrong, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_second_call_asks_nothing(run: Context, source: Path, tmp_path: Path) -> None:
    predict(run, source, tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    again = summary(predict(run, source, tmp_path / "out.jsonl", "--json"))
    assert again["reused"] == again["rows"] == len(before.splitlines())
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_half_a_line_at_the_end_is_written_again(run: Context, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    predict(run, source, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:len(whole) // 2])
    done = summary(predict(run, source, out, "--json"))
    assert 0 < done["reused"] < done["rows"]
    assert out.read_bytes() == whole


def test_failed_rows_are_asked_again_in_their_place(run: Context, source: Path, tmp_path: Path) -> None:
    rows = source.read_text().splitlines()
    out = tmp_path / "out.jsonl"
    predict(run, write(tmp_path / "in.jsonl", [*rows[:3], "{half", *rows[4:]]), out)
    done = predict(run, write(tmp_path / "in.jsonl", rows), out, "--json")
    assert done.exit_code == 0
    assert summary(done)["reused"] == len(rows) - 1
    assert [line["id"] for line in lines(out)] == [json.loads(row)["id"] for row in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_killed_while_failed_rows_are_asked_again_nothing_is_lost(
        run: Context, source: Path, tmp_path: Path) -> None:
    """As a kill leaves it: the earlier file, and the beginning of the new one."""
    rows = source.read_text().splitlines()
    out = tmp_path / "out.jsonl"
    predict(run, source, out)
    whole = out.read_text().splitlines(keepends=True)
    failed = json.loads(whole[20]) | {"output": None, "value": None, "error": "x"}
    (tmp_path / "out.jsonl.before").write_text("".join([*whole[:20], json.dumps(failed) + "\n", *whole[21:]]))
    out.write_text("".join(whole[:10]))
    done = summary(predict(run, source, out, "--json"))
    assert (done["reused"], done["rows"]) == (len(rows) - 1, len(rows))
    assert out.read_text() == "".join(whole)


def test_killed_and_called_again_the_file_is_the_same(run: Context, source: Path, tmp_path: Path) -> None:
    rows = source.read_text().splitlines() * 6  # more than two batches
    source = write(tmp_path / "many.jsonl", rows)
    command = [sys.executable, "-m", "distillctl.cli.main", "predict", run.run_name, "--workspace",
               str(run.workspace.root), "-i", str(source), "-o", str(tmp_path / "out.jsonl")]
    killed = subprocess.run(command, capture_output=True, timeout=120, env={
        **os.environ, "DISTILLCTL_TESTING": "1", "DISTILLCTL_CRASH_AT": "after-predict-batch"})
    assert killed.returncode == -signal.SIGKILL
    assert len(lines(tmp_path / "out.jsonl")) == 512
    done = summary(predict(run, source, tmp_path / "out.jsonl", "--json"))
    assert (done["reused"], done["rows"]) == (512, len(rows))
    predict(run, source, tmp_path / "unkilled.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "unkilled.jsonl").read_bytes()


def test_another_files_output_is_not_mixed_in(run: Context, source: Path, tmp_path: Path) -> None:
    predict(run, source, tmp_path / "out.jsonl")
    rows = source.read_text().splitlines()
    with pytest.raises(UsageError, match="other rows than these"):
        predict(run, write(tmp_path / "other.jsonl", rows[1:]), tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="more lines than there are rows"):
        predict(run, write(tmp_path / "short.jsonl", rows[:5]), tmp_path / "out.jsonl")


@pytest.mark.parametrize(("content", "reason"), [
    ('{"id": "1", "run": "other/student", "output": "code"}\n', "another student's answers"),
    ('{"my": "own file"}\n', "no output of `predict`")])
def test_a_file_that_is_not_this_students_output_is_left_alone(
        run: Context, source: Path, tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "out.jsonl").write_text(content)
    with pytest.raises(UsageError, match=reason):
        predict(run, source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == content


def test_a_run_is_used_as_it_lies_there_when_its_data_has_changed(
        source: Path, tmp_path: Path, run: Context) -> None:
    recipes = tmp_path / "recipes"
    shutil.copytree(RECIPES, recipes)
    other = api.run(recipes / "routing.yaml", backend="linear", overrides=["baseline=null"],
                    workspace=tmp_path)
    with (recipes / "data" / "routing.jsonl").open("a") as file:
        file.write("\n")
    done = CliRunner().invoke(cli, [
        "predict", other.path.name, "--workspace", str(tmp_path), "-i", str(source), "-o",
        str(tmp_path / "out.jsonl")], catch_exceptions=False)
    assert done.exit_code == 0
    assert lines(tmp_path / "out.jsonl")[0]["run"] == other.name


def test_the_input_is_never_written_over(run: Context, source: Path) -> None:
    with pytest.raises(UsageError, match="is the input itself"):
        predict(run, source, source)


def test_a_run_that_is_not_finished_is_refused(run: Context, source: Path, tmp_path: Path) -> None:
    metrics = run.path("metrics.json")
    metrics.rename(tmp_path / "away")
    try:
        with pytest.raises(UsageError, match="no metrics yet"):
            predict(run, source, tmp_path / "out.jsonl")
    finally:
        (tmp_path / "away").rename(metrics)


def test_without_vllm_the_command_says_what_to_install(
        run: Context, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs the `local` extra")
    monkeypatch.setattr("distillctl_local.vllm_engine.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'distillctl\[local\]' 'vllm"):
        predict(run, source, tmp_path / "out.jsonl", "--engine", "vllm")
    assert not (tmp_path / "out.jsonl").exists()


def test_memory_does_not_grow_with_the_file(run: Context, source: Path, tmp_path: Path) -> None:
    row = json.loads(source.read_text().splitlines()[0])
    student = Student("a/run", run.task, Echo(), None, CollectOptions(), None, None)
    peaks = []
    for count in (1000, 4000):
        many = write(tmp_path / f"{count}.jsonl", [{**row, "id": n} for n in range(count)])
        tracemalloc.start()
        done = work.predict(student, work.read_requests(many, run.task, None), tmp_path / f"{count}.out",
                            Silent())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.rows == count
    assert peaks[1] < 1.2 * peaks[0]
