"""A good recipe loads as it is meant; overrides, places, resolved form and the cost of reading it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from support.recipe import GOOD, STRUCTURED, TEXT, write_recipe

from distillctl.errors import RecipeError, StorageError
from distillctl.recipe.checks import base_url_problem
from distillctl.recipe.load import load_recipe, load_resolved, settings_problems
from distillctl.recipe.models import Recipe
from distillctl.recipe.secrets import holds_key
from distillctl.store.files import write_json

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(folder: Path, text: str, *overrides: str, backend: str | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(folder, text).relative_to(folder), overrides, backend)
    return [str(problem) for problem in caught.value.problems]


class TestShippedRecipes:
    @pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
    def test_each_loads(self, path: Path):
        loaded = load_recipe(path)
        assert loaded.recipe.name == path.stem
        assert loaded.text == path.read_text(encoding="utf-8")

    @pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
    def test_each_names_the_schema_for_editors(self, path: Path):
        assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")

    def test_the_routing_prompt_is_the_one_that_its_teacher_saw(self):
        task = load_recipe(ROOT / "recipes" / "routing.yaml").task
        head = ("Classify this question into one of four retrieval modes.\n\nModes:\n"
                "- code: question is about specific code, files, or symbols\n"
                "- docs: question is about documentation, README, or guides\n"
                "- hybrid: question spans both code and documentation\n"
                "- skip: question is general knowledge, no retrieval needed\n\n"
                "Answer with the mode alone.\n\n")
        with_context = task.render({"conversation_context": "User: hi", "question": "Why?"})
        without = task.render({"conversation_context": "", "question": "Why?"})
        assert with_context[0]["content"] == (
            head + "Conversation context:\nUser: hi\n\nQuestion: Why?\n\nMode:")
        assert without[0]["content"] == head + "Question: Why?\n\nMode:"


class TestValues:
    def test_yes_and_no_are_labels(self, folder: Path):
        assert load_recipe(write_recipe(folder)).task.labels == ("yes", "no")

    def test_training_without_a_length_takes_three_epochs(self, folder: Path):
        assert load_recipe(write_recipe(folder)).recipe.train.epochs == 3
        train = load_recipe(write_recipe(folder, GOOD + "train: {max_steps: 5}\n")).recipe.train
        assert (train.epochs, train.max_steps) == (None, 5)

    def test_whole_numbers_serve_as_numbers(self, folder: Path):
        assert load_recipe(write_recipe(folder, GOOD + "budget: {max_usd: 5}\n")).recipe.budget.max_usd == 5.0

    def test_a_backend_that_is_not_installed_may_have_its_block(self, folder: Path):
        text = GOOD + "backends: {acme: {anything: [1, 2]}}\n"
        assert load_recipe(write_recipe(folder, text)).recipe.backends == {"acme": {"anything": [1, 2]}}

    def test_a_schema_file_is_inlined(self, folder: Path):
        inline = "{type: object, properties: {answer: {type: string}, pages: {type: array}}}"
        path = write_recipe(folder, STRUCTURED.replace(inline, "data/answer.schema.json"))
        schema = {"type": "object", "properties": {"answer": {"$ref": "#/$defs/a"}},
                  "$defs": {"a": {"type": "string"}}}
        write_json(folder / "data" / "answer.schema.json", schema)
        loaded = load_recipe(path)
        assert loaded.recipe.task.json_schema == schema
        assert loaded.task.parse('{"answer": 1}').problem and loaded.task.parse('{"answer": "a"}').value

    def test_a_recursive_schema_is_allowed(self, folder: Path):
        text = STRUCTURED.replace("pages: {type: array}", "pages: {$ref: '#'}")
        assert load_recipe(write_recipe(folder, text)).task.kind == "structured"

    def test_a_text_recipe_loads(self, folder: Path):
        assert load_recipe(write_recipe(folder, TEXT)).recipe.data.expected == {"text": "label"}

    def test_a_file_per_split_loads(self, folder: Path):
        text = GOOD.replace("data/examples.jsonl", "{train: a.jsonl, dev: b.jsonl, test: c.jsonl}")
        path = write_recipe(folder, text)
        for name in "abc":
            (folder / f"{name}.jsonl").touch()
        assert load_recipe(path).recipe.data.examples.dev == "b.jsonl"


class TestEnvironment:
    VARIABLE = "DISTILLCTL_BACKEND_HF_JOBS"

    def test_it_sets_fields_of_one_backend_over_the_recipe_s_and_under_those_of_the_command(
            self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(self.VARIABLE, '{"base_url": "http://127.0.0.1:1", flavor: cpu-basic}')
        path = write_recipe(folder, GOOD + "backends: {hf-jobs: {flavor: l4x1, timeout: 2h}}\n")
        loaded = load_recipe(path, ["backends.hf-jobs.flavor=h200"])
        assert loaded.recipe.backends == {
            "hf-jobs": {"base_url": "http://127.0.0.1:1", "flavor": "h200", "timeout": "2h"}}
        assert loaded.where("backends.hf-jobs.base_url") == self.VARIABLE

    @pytest.mark.parametrize(("value", "what"), [
        ("http://127.0.0.1:1", "must hold settings of a backend in YAML"), ("{a: 1", "")])
    def test_what_is_no_mapping_is_a_problem_that_names_the_variable(
            self, folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, what: str):
        monkeypatch.setenv(self.VARIABLE, value)
        (only,) = problems(folder, GOOD)
        assert only.startswith(self.VARIABLE) and what in only

    def test_a_key_in_it_is_refused_and_not_shown(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        key = "hf_" + "Ab1" * 12
        monkeypatch.setenv(self.VARIABLE, f"{{api_key: {key}}}")
        found = problems(folder, GOOD)
        assert any("in the shape of a key" in one for one in found) and key not in "".join(found)

    def test_a_baseline_that_is_the_chosen_backend_is_left_out(self, folder: Path):
        path = write_recipe(folder, GOOD + "baseline: linear\n")
        assert load_recipe(path, backend="linear").recipe.baseline is None
        assert load_recipe(path, backend="openai").recipe.baseline == "linear"


class TestProblems:
    def test_problems_of_all_kinds_come_at_once_in_the_order_of_the_file(self, folder: Path):
        text = GOOD.replace("expected: label", "expected: label\n  examples: twice.jsonl").replace(
            "{{ text }}", "{{ text }") + "train: {epochs: two, lora: {rnk: 3}}\nverdict: {max_drop: 7}\n"
        found = [line.splitlines()[0] for line in problems(folder, text)]
        assert [line.split(": ")[0] for line in found] == [
            "recipe.yaml:8 `task.prompt`", "recipe.yaml:12 `data.examples`", "recipe.yaml:17 `train.epochs`",
            "recipe.yaml:17 `train.lora.rnk`", "recipe.yaml:18 `verdict.max_drop`"]

    def test_what_the_reader_complained_about_is_not_complained_about_again(self, folder: Path):
        assert len(problems(folder, GOOD.replace("labels: [yes, no]", "labels: !!set [yes, no]"))) == 1

    def test_a_missing_file_is_named_as_written(self, folder: Path):
        (only,) = problems(folder, GOOD.replace("data/teacher.jsonl", "data/techer.jsonl"))
        assert only.startswith("recipe.yaml:14 `teacher.outputs`: there is no such file, "
                               "got 'data/techer.jsonl'")

    def test_a_missing_recipe_says_how_to_get_one(self, folder: Path):
        with pytest.raises(RecipeError, match=r"there is no such recipe\n.*distillctl init"):
            load_recipe(Path("nowhere.yaml"))

    def test_one_file_for_each_split_that_is_not_there(self, folder: Path):
        text = GOOD.replace("examples: data/examples.jsonl", "examples: {train: a.jsonl, tset: c.jsonl}")
        fields = [line.split("`")[1] for line in problems(folder, text)]
        assert fields == ["data.examples.dev", "data.examples.test", "data.examples.tset"]


class TestOverrides:
    def test_values_are_yaml(self, folder: Path):
        recipe = load_recipe(write_recipe(folder), [
            "train.learning_rate=1e-3", "train.lora={rank: 4, alpha: 8}", "evaluate.base=false", "name=other",
            "description='a: b'", "baseline=", "train.lora.rank=2",
        ], backend="linear").recipe
        assert recipe.train.learning_rate == 1e-3
        assert (recipe.train.lora.rank, recipe.train.lora.alpha) == (2, 8)
        assert (recipe.evaluate.base, recipe.name, recipe.description) == (False, "other", "a: b")
        assert (recipe.backend, recipe.baseline) == ("linear", None)

    def test_the_file_is_kept_as_it_is(self, folder: Path):
        assert load_recipe(write_recipe(folder), ["name=other"]).text == GOOD

    def test_an_unknown_path_names_the_option_and_the_nearest_field(self, folder: Path):
        (only,) = problems(folder, GOOD, "train.epoch=2")
        assert only == ("--set train.epoch `train.epoch`: there is no such field here\n"
                        "    did you mean `epochs`?")

    def test_a_wrong_value_inside_names_the_option(self, folder: Path):
        (only,) = problems(folder, GOOD, "train.lora={rank: 0}")
        assert only.startswith("--set train.lora `train.lora.rank`: must be at least 1, got 0")

    def test_a_wrong_backend_names_the_option(self, folder: Path):
        (only,) = problems(folder, GOOD, backend="No Such")
        assert only.startswith("--backend `backend`: must be lower-case letters")

    def test_a_length_is_replaced_by_taking_the_other_back(self, folder: Path):
        path = write_recipe(folder, GOOD + "train: {epochs: 2}\n")
        train = load_recipe(path, ["train.epochs=null", "train.max_steps=10"]).recipe.train
        assert (train.epochs, train.max_steps) == (None, 10)

    def test_an_override_can_mend_the_file(self, folder: Path):
        path = write_recipe(folder, GOOD.replace("data/teacher.jsonl", "gone.jsonl"))
        assert load_recipe(path, ["teacher.outputs=data/teacher.jsonl"]).where("teacher.outputs") == (
            "--set teacher.outputs")


class TestPaths:
    def test_a_path_starts_at_the_recipe(self, folder: Path):
        write_recipe(folder / "deep")
        loaded = load_recipe(Path("deep/recipe.yaml"))
        assert loaded.resolve("data/examples.jsonl") == Path("deep/data/examples.jsonl")
        assert loaded.resolve("new.jsonl") == Path("deep/new.jsonl")

    def test_a_path_may_go_up_as_far_as_the_current_folder(self, folder: Path):
        write_recipe(folder / "recipes" / "mine")
        (folder / "shared.jsonl").touch()
        loaded = load_recipe(Path("recipes/mine/recipe.yaml"), ["data.examples=../../shared.jsonl"])
        assert loaded.resolve("../../shared.jsonl").resolve() == folder / "shared.jsonl"
        with pytest.raises(RecipeError, match="leaves both"):
            loaded.resolve("../../../elsewhere.jsonl")

    def test_an_absolute_path_in_the_current_folder_is_allowed(self, folder: Path):
        loaded = load_recipe(write_recipe(folder))
        assert loaded.resolve(str(folder / "data")) == folder / "data"


class TestKeptRecipe:
    def test_resolved_form_has_defaults_and_nulls_and_reads_as_the_same_recipe(self, folder: Path):
        loaded = load_recipe(write_recipe(folder), ["train.max_steps=7"])
        resolved = loaded.resolved_json()
        assert resolved["train"]["epochs"] is None and resolved["train"]["lora"]["targets"] is None
        assert Recipe.model_validate(json.loads(json.dumps(resolved))) == loaded.recipe

    def test_a_run_reads_what_it_kept_though_the_data_is_gone(self, folder: Path):
        loaded = load_recipe(write_recipe(folder))
        write_json(folder / "kept.json", loaded.resolved_json())
        (folder / "data" / "examples.jsonl").unlink()
        again = load_resolved(folder / "kept.json", folder / "recipe.yaml", folder)
        assert (again.recipe, again.text, again.base_dir) == (loaded.recipe, loaded.text, folder)
        assert again.task.labels == loaded.task.labels

    def test_a_damaged_kept_recipe_says_so(self, folder: Path):
        write_recipe(folder)
        write_json(folder / "kept.json", {"name": "tiny"})
        with pytest.raises(StorageError, match="another version"):
            load_resolved(folder / "kept.json", folder / "recipe.yaml", folder)

    def test_a_loaded_recipe_does_not_change(self, folder: Path):
        loaded = load_recipe(write_recipe(folder))
        with pytest.raises(dataclasses.FrozenInstanceError):
            loaded.text = ""  # type: ignore[misc]


class Engine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    engine: Literal["auto", "cpu"] = "auto"
    threads: int | list[int] = 1
    options: dict[str, Any] = {}


class TestBackendSettings:
    def told(self, folder: Path, block: str) -> list[str]:
        path = write_recipe(folder, GOOD + f"backends:\n  local:\n{block}")
        loaded = load_recipe(path.relative_to(folder))
        with pytest.raises(ValidationError) as caught:
            Engine.model_validate(loaded.recipe.backends["local"])
        return [str(p) for p in settings_problems(caught.value, loaded, "backends.local", Engine)]

    def test_problems_have_line_field_and_nearest_name(self, folder: Path):
        assert self.told(folder, "    engin: cpu\n    engine: cpuu\n") == [
            "recipe.yaml:19 `backends.local.engine`: must be one of auto, cpu, got 'cpuu'\n"
            "    did you mean `cpu`?",
            "recipe.yaml:18 `backends.local.engin`: there is no such field here\n    did you mean `engine`?",
        ]

    def test_a_value_that_fits_no_alternative_is_one_problem(self, folder: Path):
        assert self.told(folder, "    threads: many\n") == [
            "recipe.yaml:18 `backends.local.threads`: must be a whole number or a list, got 'many'"]

    def test_the_alternative_that_was_meant_is_told(self, folder: Path):
        (only,) = self.told(folder, "    threads: [1, two]\n")
        assert only.startswith("recipe.yaml:18 `backends.local.threads[1]`: must be a whole number, "
                               "got 'two'")

    def test_a_value_that_may_be_a_secret_is_not_shown(self, folder: Path):
        (only,) = self.told(folder, "    api_token: hush-hush\n")
        assert "backends.local.api_token" in only and "hush" not in only


class TestAddresses:
    @pytest.mark.parametrize("url", [
        "https://api.example.org/v1", "https://api.example.org:8443/v1?v=1", "http://127.0.0.1:8000/v1",
        "http://localhost:11434/v1", "http://[::1]:8000", "http://model.localhost/", "https://10.0.0.5/v1",
        "http://127.9.9.9", "HTTPS://API.EXAMPLE.ORG",
    ])
    def test_an_address_that_is_safe_is_taken(self, url: str):
        assert base_url_problem(url) is None

    @pytest.mark.parametrize("url", [
        "http://10.0.0.5/v1", "http://0.0.0.0:8000", "http://localhost.example.org", "http://169.254.169.254",
        "https://169.254.169.254", "https://0xa9fea9fe/", "https://0251.0376.0251.0376", "https://[fe80::1%25e0]/",
        "https://[fd00:ec2::254]/", "https://100.100.100.200", "https://METADATA.google.internal", "https://u@h/",
        "https://:p@h/", "file:///etc/passwd", "https://", "//h/v1", "https://h:port/", "https://h /", "",
        "https://[::1",
    ])
    def test_an_address_that_is_not_is_refused(self, url: str):
        assert base_url_problem(url) is not None


@pytest.mark.parametrize(("text", "is_key"), [
    ("sk-" + "a1" * 12, True), ("sk-ant-api03-" + "Ab1_" * 8, True), ("sk-or-v1-" + "0f" * 20, True),
    ("hf_" + "aB" * 17, True), ("AIza" + "x" * 35, True), ("AKIA" + "Z7" * 8, True),
    ("xoxb-1234567890-a", True),
    ("ghp_" + "a" * 36, True), ("github_pat_" + "a1" * 20, True), ("tgp_v1_" + "a1" * 15, True),
    ("gsk_" + "a1" * 20, True), ("Bearer " + "a1" * 10, True), ("-----BEGIN OPENSSH PRIVATE KEY-----", True),
    ("eyJ" + "a" * 20 + ".eyJ" + "b" * 20 + ".c", True),
    ("a sk-learn-pipeline-example is no key", False), ("task-oriented-dialogue-systems-2024", False),
    ("the bearer of internationalization news", False), ("hf_model", False), ("OPENAI_API_KEY", False),
    ("Qwen/Qwen3-0.6B", False), ("sha256:" + "0f" * 32, False), ("-----BEGIN CERTIFICATE-----", False),
])
def test_shapes_of_keys(text: str, is_key: bool):
    assert holds_key(text) is is_key


def test_reading_a_recipe_imports_nothing_heavy(tmp_path: Path):
    path = write_recipe(tmp_path)
    code = ("import sys; from pathlib import Path; from distillctl.recipe.load import load_recipe;"
            f"load_recipe(Path({str(path)!r}));"
            "heavy = {'torch', 'transformers', 'jsonschema', 'rapidfuzz', 'openai', 'anthropic', 'rich',"
            "'numpy', 'scipy', 'sqlite3', 'http.client'};"
            "sys.stdout.write(','.join(sorted(heavy & set(sys.modules))))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
