"""A run with `train.lora: null`, and what its student, a whole model, can be used for."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from support.finished import whole_run
from support.tiny_students import tiny_base

from distillctl.backend import StudentRef
from distillctl.cli.main import cli
from distillctl.context import Context
from distillctl.errors import StudentError
from distillctl.using import open_student


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StudentRef:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base: StudentRef, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return whole_run(tmp_path_factory.mktemp("workspace"), base)


def call(run: Context, command: str, *more: str) -> Result:
    return CliRunner().invoke(cli, [command, run.run_name, "--workspace", str(run.workspace.root), *more],
                              catch_exceptions=False)


def test_it_ends_with_a_verdict_on_a_whole_model(run: Context) -> None:
    student = json.loads(run.path("student.json").read_text())
    assert student["kind"] == "model" and "model.safetensors" in student["files"]
    assert json.loads(run.path("metrics.json").read_text())["verdict"]["word"]


def test_predict_gives_the_answers_that_were_evaluated(run: Context, tmp_path: Path) -> None:
    rows = [{"id": e.id, **e.fields} for e in run.examples("test")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call(run, "predict", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    assert done.exit_code == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["id"], line["value"]) for line in found] == [
        (p.id, p.value) for p in run.predictions("student", "test")]


def test_serve_gives_them_too(run: Context) -> None:
    openai = pytest.importorskip("openai", reason="needs the `openai` extra")
    pytest.importorskip("uvicorn", reason="needs the `serve` extra")
    from distillctl.serve.server import Server

    (example, *_), (was, *_) = run.examples("test"), run.predictions("student", "test")
    with open_student(run) as student:
        server = Server(student)
        thread = threading.Thread(target=server.run, kwargs={"signals": False})
        thread.start()
        try:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            reply = client.chat.completions.create(
                model=client.models.list().data[0].id, messages=run.task.render(example.fields))
        finally:
            server.stop()
            thread.join()
    assert reply.choices[0].message.content == was.answer.output


@pytest.mark.parametrize("form", ["merged", "gguf", "ollama", "vllm"])
def test_every_other_form_answers_as_the_student_does(run: Context, tmp_path: Path, form: str) -> None:
    pytest.importorskip("gguf", reason="needs the `local` extra")
    done = call(run, "export", "--to", form, "-o", str(tmp_path / "out"), "--verify", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["check"]["changed"], found["check"]["passed"]) == (0, 0, True)


def test_merged_weights_keep_every_bit_unless_told(run: Context, tmp_path: Path) -> None:
    call(run, "export", "--to", "merged", "-o", str(tmp_path / "out"), "--no-verify")
    kept, written = (load_file(folder / "model.safetensors")
                     for folder in (run.path("student"), tmp_path / "out"))
    assert kept.keys() == written.keys()
    assert all(written[name].equal(weight) for name, weight in kept.items())


def test_an_adapter_is_refused_with_the_reason(run: Context, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="whole model and has no adapter"):
        call(run, "export", "--to", "adapter", "-o", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_vllm_line_serves_the_folder_itself(run: Context, tmp_path: Path) -> None:
    done = call(run, "export", "--to", "vllm", "-o", str(tmp_path / "out"), "--json")
    (line,) = json.loads(done.stdout)["notes"]
    assert line.startswith(f"vllm serve {tmp_path}/out --dtype float32 ") and "--enable-lora" not in line
    assert """--override-generation-config '{"temperature": 0}'""" in line


def test_plan_says_that_every_weight_is_trained(run: Context) -> None:
    recipe = run.workspace.root / "recipe" / "recipe.yaml"
    done = CliRunner().invoke(cli, ["plan", str(recipe), "--workspace", str(run.workspace.root), "--json",
                                    "--set", "train.seed=5"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "every weight trained, in fp32" in done.stdout and "a tenth" in done.stdout
