"""Sweeps: lists in a recipe make a grid of runs that share collection and budget, and one comparison."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distillctl import api
from distillctl.cli.main import cli
from distillctl.errors import RecipeError, UsageError
from distillctl.evaluate.wording import settings_text
from distillctl.recipe.load import load_cells
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.store.files import exclusive_lock, write_json, write_jsonl
from distillctl.sweep import Sweep, open_cells, sweep
from distillctl.testing.chat_server import ChatServer, Reply

WORDS = {"code": "function", "docs": "manual"}
SEEDS = ("--set", "train.seed=[0, 1]")


def write_all(folder: Path) -> None:
    """A recipe of 80 rows and a recorded teacher."""
    rows = [{"id": f"q{n:02d}", "question": f"which {WORDS[label]} is about topic {n * 7919}", "label": label}
            for n, label in enumerate(["code", "docs"] * 40)]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "said.jsonl", [{"id": row["id"], "output": row["label"]} for row in rows])
    write_recipe(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipe."""
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep]:
    """A finished sweep over two seeds, and where it was made."""
    folder = tmp_path_factory.mktemp("once")
    write_all(folder)
    return folder, sweep(folder / "recipe.yaml", overrides=SEEDS[1:], workspace=folder)


@pytest.fixture
def swept(folder: Path, once: tuple[Path, Sweep]) -> Path:
    """A folder in which that sweep was made."""
    for name in ("runs", ".distillctl"):
        shutil.copytree(once[0] / name, folder / name)
    return folder


def write_recipe(folder: Path, teacher: dict | None = None, **more: object) -> None:
    write_json(folder / "recipe.yaml", {  # JSON is YAML
        "name": "sweep",
        "task": {"kind": "classification", "labels": ["code", "docs"], "prompt": "{{ question }}"},
        "data": {"examples": "rows.jsonl", "expected": "label", "near_duplicate": 1.0,
                 "split": {"train": 0.5, "dev": 0.25, "test": 0.25}},
        "teacher": teacher or {"provider": "recorded", "outputs": "said.jsonl"},
        "student": {"model": "smollm2-135m"}, "backend": "linear", **more})


def call(command: str, *more: str) -> Result:
    return CliRunner().invoke(cli, [command, "recipe.yaml", *more])


class TestGrid:
    """From lists to cells."""

    def test_each_combination_is_a_cell(self, folder: Path) -> None:
        cells = load_cells(folder / "recipe.yaml", ["student.model=[a, b]", "train.lora.rank=[4, 8]"])
        assert [one.cell for one in cells] == [
            {"student.model": model, "train.lora.rank": rank} for model in "ab" for rank in (4, 8)]
        assert [(one.recipe.student.model, one.recipe.train.lora.rank) for one in cells] == [
            ("a", 4), ("a", 8), ("b", 4), ("b", 8)]

    def test_all_weights_and_an_adapter_are_two_cells(self, folder: Path) -> None:
        cells = load_cells(folder / "recipe.yaml", ["train.lora=[null, {rank: 4}]"])
        assert [one.cell for one in cells] == [{"train.lora": None}, {"train.lora": {"rank": 4}}]
        assert [one.recipe.train.lora and one.recipe.train.lora.rank for one in cells] == [None, 4]
        assert settings_text(cells[1].cell) == "lora {rank: 4}"

    def test_lists_that_are_meant_as_lists_are_no_sweep(self, folder: Path) -> None:
        only, = load_cells(folder / "recipe.yaml", ["train.lora.targets=[q_proj]", "train.seeds=[1, 2]"])
        assert only.cell is None

    def test_the_model_of_the_chosen_backend_can_be_swept(self, folder: Path) -> None:
        cells = load_cells(folder / "recipe.yaml", ["backends.openai.model=[a, b]"], "openai")
        assert [one.recipe.backends["openai"]["model"] for one in cells] == ["a", "b"]

    def test_a_wrong_value_is_told_with_its_own_line(self, folder: Path) -> None:
        path = folder / "lines.yaml"
        path.write_text((folder / "recipe.yaml").read_text().strip().removesuffix("}") + (
            ', "train": {"learning_rate": [\n0.001,\n7\n], "batch_size": []}}'))
        with pytest.raises(RecipeError) as caught:
            load_cells(path)
        told = {problem.field: problem for problem in caught.value.problems}
        assert "at most 1" in told["train.learning_rate"].what and told["train.learning_rate"].value == 7
        line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text == "7")
        assert told["train.learning_rate"].where == f"{path}:{line}"
        assert "empty list" in told["train.batch_size"].what and len(told) == 2

    def test_so_is_one_inside_a_listed_block(self, folder: Path) -> None:
        path = folder / "lines.yaml"
        path.write_text((folder / "recipe.yaml").read_text().strip().removesuffix("}") + (
            ', "train": {"lora": [null, {\n"rank": 0}]}}'))
        with pytest.raises(RecipeError) as caught:
            load_cells(path)
        (problem,) = caught.value.problems
        line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith('"rank"'))
        assert (problem.field, problem.where) == ("train.lora.rank", f"{path}:{line}")

    @pytest.mark.parametrize(("override", "said"), [
        ("train.seed=[1, 1]", "names a value twice"), ("train.seed=[" + ", ".join(map(str, range(101))) + "]",
                                                       "101 students, more than 100")])
    def test_lists_that_make_no_sense_are_refused(self, folder: Path, override: str, said: str) -> None:
        with pytest.raises(RecipeError, match=said):
            load_cells(folder / "recipe.yaml", [override])

    def test_one_number_written_in_two_ways_is_one_student(self, folder: Path) -> None:
        done = call("check", "--set", "train.lora.alpha=[32, 32.0]")
        assert done.exception.exit_code == 2
        assert "`train.lora.alpha`: names a value twice" in str(done.exception)

    def test_values_that_the_backend_does_not_look_at_are_refused(self, folder: Path) -> None:
        done = call("check", "--set", "student.model=[a, b]")
        assert done.exception.exit_code == 2
        assert "`student.model`: changes nothing at backend 'linear'" in str(done.exception)


class TestRun:
    """From cells to a comparison."""

    def test_every_cell_is_a_run_and_all_are_compared(self, once: tuple[Path, Sweep]) -> None:
        folder, done = once
        assert [(cell.settings, cell.state) for cell in done.cells] == [
            ({"train.seed": 0}, "done"), ({"train.seed": 1}, "done")]
        assert all((folder / "runs" / cell.run / "report.html").is_file() for cell in done.cells)
        assert done.comparison.ranked_on == "dev" and done.comparison.sweet_spot
        assert [run.settings for run in done.comparison.runs] == [{"train.seed": 0}, {"train.seed": 1}]
        assert "2 students were compared" in done.page.read_text(encoding="utf-8")

    def test_a_second_sweep_reuses_every_cell(self, swept: Path) -> None:
        again = call("run", *SEEDS, "--json")
        assert again.exit_code == 0 and "▸" not in again.stderr
        assert Path(json.loads(again.stdout)["page"]).is_file()

    def test_a_longer_list_adds_to_what_is_there(self, swept: Path) -> None:
        made = json.loads(call("plan", "--set", "train.seed=[0, 1, 2]", "--json").stdout)
        assert made["trainings"] == 1

    def test_its_runs_are_compared_by_the_recipe_with_its_lists(self, swept: Path) -> None:
        recipe = json.loads((swept / "recipe.yaml").read_text())
        write_json(swept / "recipe.yaml", {**recipe, "train": {"seed": [0, 1]}})
        assert len(json.loads(call("compare", "--json").stdout)["runs"]) == 2
        assert "**Sweet spot: sweep/linear" in call("compare", "--markdown").stdout

    def test_a_cell_that_fails_loses_no_other(self, folder: Path) -> None:
        first, *_ = open_cells("recipe.yaml", overrides=SEEDS[1:])
        first.rundir.create()
        with exclusive_lock(first.rundir.path / ".lock"):
            done = call("run", *SEEDS, "--json")
        assert done.exit_code == 1
        found = json.loads(done.stdout)
        assert [cell["state"] for cell in found["cells"]] == ["failed", "done"]
        assert "in use by another process" in done.stderr
        assert len(found["comparison"]["runs"]) == 1

    def test_a_killed_sweep_goes_on(self, folder: Path) -> None:
        killed = subprocess.run(
            [sys.executable, "-m", "distillctl.cli.main", "run", "recipe.yaml", *SEEDS], capture_output=True,
            env={**os.environ, "DISTILLCTL_CRASH_AT": "before-mark-answer-student:2"}, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        done = call("run", *SEEDS, "--json")
        assert done.exit_code == 0
        assert done.stderr.count("▸ train-student") == 0 and done.stderr.count("▸ answer-student") == 1
        assert len(json.loads(done.stdout)["comparison"]["runs"]) == 2

    def test_a_recipe_that_must_be_one_student_says_how_to_choose(self, folder: Path) -> None:
        done = call("drift", *SEEDS)
        assert done.exception.exit_code == 2 and "choose one: --set train.seed=0" in str(done.exception)


class TestSharing:
    """What cells share."""

    @pytest.fixture
    def server(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("TEST_KEY", "some-key")
        with ChatServer(lambda asked: Reply("code" if "function" in asked.prompt else "docs")) as server:
            yield server

    @pytest.fixture
    def tuned(self, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
        """The recipe with OpenAI as its backend, at a sandbox; the sandbox."""
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-canary-0123456789abcdef")
        provider = tmp_path_factory.mktemp("provider")
        with Sandbox(part("openai"), provider, tuner="nearest", speed=None) as sandbox:
            write_recipe(folder, backend="openai", evaluate={"base": False}, backends={"openai": {
                "model": "gpt-4.1-mini-2025-04-14", "base_url": f"{sandbox.url}/v1", "training_price": 5.0,
                "price": {"input": 0, "output": 0}}})
            yield sandbox

    @staticmethod
    def live(folder: Path, server: ChatServer, **more: object) -> None:
        write_recipe(folder, {"provider": "openai", "model": "m", "base_url": server.base_url,
                              "api_key_env": "TEST_KEY", "price": {"input": 1000, "output": 1000}}, **more)

    def test_the_teacher_is_asked_once_and_its_cost_counts_for_every_cell(
            self, folder: Path, server: ChatServer) -> None:
        self.live(folder, server, economics={"hardware_usd_per_hour": 0}, budget={"max_usd": 1000})
        done = call("run", *SEEDS, "--yes", "--json")
        assert done.exit_code == 0, done.output
        assert len(server.asked) == 80
        first, second = (run["economics"] for run in json.loads(done.stdout)["comparison"]["runs"])
        assert first["training_usd"] == second["training_usd"] > 0
        assert "that other runs had paid for the answers it uses" in first["training_source"] + (
            second["training_source"])

    def test_the_plan_counts_the_teacher_once(self, folder: Path, server: ChatServer) -> None:
        self.live(folder, server, budget={"max_usd": 1000})
        one, both = (json.loads(call("plan", *more, "--json").stdout) for more in ((), SEEDS))
        assert both["usd"] == one["usd"] and both["usd"][1] > 0
        assert (both["trainings"], len(both["cells"])) == (2, 2)
        assert "2 trainings in all, one collection" in call("plan", *SEEDS).stdout
        assert len(server.asked) == 0

    def test_a_baseline_that_all_share_is_trained_once(self, folder: Path) -> None:
        write_recipe(folder, baseline="linear", backend="openai",
                     backends={"openai": {"model": ["a", "b"]}})
        made = json.loads(call("plan", "--json").stdout)
        actions = [{row["stage"]: row["action"] for row in cell["rows"]} for cell in made["cells"]]
        assert [one["train-baseline"] for one in actions] == ["run", "share"]
        assert made["trainings"] == 3

    def test_a_teacher_that_fails_ends_the_sweep(self, folder: Path, server: ChatServer,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TEST_KEY", "some-key")
        self.live(folder, server, budget={"max_usd": 1000})
        server.script = lambda asked: Reply(status=401)
        done = call("run", *SEEDS, "--yes", "--json")
        assert done.exit_code == 1
        assert [cell["state"] for cell in json.loads(done.stdout)["cells"]] == ["failed", "not started"]

    def test_the_budget_is_that_of_the_whole_sweep(self, tuned: Sandbox) -> None:
        epochs = ("--set", "train.epochs=[1, 2]")
        dearest = max(cell["usd"][1] for cell in json.loads(call("plan", *epochs, "--json").stdout)["cells"])
        done = call("run", *epochs, "--yes", "--json", "--set", f"budget.max_usd={1.05 * dearest}")
        found = json.loads(done.stdout)["cells"]
        assert (done.exit_code, tuned.creates()) == (1, 1)
        assert [cell["state"] for cell in found] == ["done", "failed"]
        assert "budget" in found[1]["problems"][0]["what"]

    def test_jobs_that_were_left_are_come_back_to(self, tuned: Sandbox) -> None:
        command = ("run", "--set", "train.epochs=[1, 2]", "--yes", "--json")
        left = call(*command, "--detach")
        assert left.exit_code == 0
        assert [cell["state"] for cell in json.loads(left.stdout)["cells"]] == ["training", "training"]
        done = call(*command)
        assert (done.exit_code, tuned.creates()) == (0, 2)
        assert len(json.loads(done.stdout)["comparison"]["runs"]) == 2


def test_one_run_of_a_sweep_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="choose one"):
        api.run(folder / "recipe.yaml", overrides=["train.seed=[3, 4]"], workspace=folder)


def test_sizes_of_a_local_model_are_compared(folder: Path) -> None:
    pytest.importorskip("torch", reason="needs the `local` extra")
    from support.tiny_models import save_tiny_model

    models = [str(save_tiny_model(folder / name, "llama", num_hidden_layers=layers))
              for name, layers in (("small", 1), ("large", 2))]
    write_recipe(folder, student={"model": models}, train={"max_steps": 2, "learning_rate": 1e-3},
                 backend="local", backends={"local": {"threads": 1, "precision": "fp32"}}, baseline="linear",
                 evaluate={"base": False, "latency": {"items": 6, "warmup": 1}})
    done = call("run", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["comparison"]
    assert {run["settings"]["student.model"] for run in found["runs"]} == set(models)
    assert found["ranked_on"] == "dev" and found["sweet_spot"]["by"] in ("cost", "latency")
    assert len(list((folder / "runs/sweep").glob("local-*/student/adapter_model.safetensors"))) == 2
    assert done.stderr.count("it serves this run too") == 1  # the baseline
