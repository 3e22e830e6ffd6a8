"""`distillctl export`: what comes out answers as the student does, and says so where it does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.finished import linear_run, tiny_run
from support.tiny_models import FAMILIES, save_tiny_model, tiny_model, tiny_tokenizer
from support.tiny_students import tiny_base

torch = pytest.importorskip("torch", reason="needs the `local` extra")
gguf = pytest.importorskip("gguf", reason="needs the `local` extra")
from distillctl_local.encode import Encoder  # noqa: E402
from distillctl_local.export import export as export_local  # noqa: E402
from distillctl_local.export_gguf import pre_tokenizer, write_gguf  # noqa: E402
from distillctl_local.export_ollama import go_template  # noqa: E402
from distillctl_local.predictor import CANARY  # noqa: E402
from distillctl_local.scoring import plain_scores  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: E402

from distillctl import export, stages  # noqa: E402
from distillctl.backend import StudentRef  # noqa: E402
from distillctl.cli.main import cli  # noqa: E402
from distillctl.context import Context  # noqa: E402
from distillctl.errors import StudentError, UsageError  # noqa: E402
from distillctl.recipe.models import TextSpec  # noqa: E402
from distillctl.store.files import read_json, write_json  # noqa: E402
from distillctl.task import build_task  # noqa: E402
from distillctl.types import Answer, Prediction  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StudentRef:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base: StudentRef, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_run(tmp_path_factory.mktemp("workspace"), base)


def call(run: Context, form: str, into: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, [
        "export", run.run_name, "--workspace", str(run.workspace.root), "--to", form, "-o", str(into), *more],
        catch_exceptions=False)


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf", "ollama", "vllm"])
def test_every_form_answers_as_the_student_does(run: Context, tmp_path: Path, form: str) -> None:
    done = call(run, form, tmp_path / "out", "--verify", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["check"]["changed"], found["check"]["passed"]) == (0, 0, True)
    assert found["check"]["items"] == len(run.examples("test"))
    assert sorted(found["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("numbers", "dtype"), [
    ((), torch.bfloat16), (("--numbers", "f16"), torch.float16), (("--numbers", "f32"), torch.float32)])
def test_merged_weights_answer_alike_in_plain_transformers(
        run: Context, tmp_path: Path, numbers: tuple[str, ...], dtype: torch.dtype) -> None:
    """With the folder's own chat template and tokenizer: the likeliest label is the student's answer."""
    assert call(run, "merged", tmp_path / "out", "--no-verify", *numbers).exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {dtype}
    end = model.generation_config.eos_token_id
    labels = [[*tokenizer(label).input_ids, end] for label in run.task.labels]
    for example, was in zip(run.examples("test"), run.predictions("student", "test"), strict=True):
        ids = tokenizer.apply_chat_template(run.task.render(example.fields), add_generation_prompt=True)
        scores = plain_scores(model.float(), ids["input_ids"], labels)
        assert run.task.labels[int(scores.argmax())] == was.value


@pytest.mark.parametrize(("form", "numbers"), [("merged", "q8_0"), ("adapter", "f16"), ("vllm", "f16")])
def test_numbers_that_a_form_has_not_are_refused(run: Context, tmp_path: Path, form: str,
                                                 numbers: str) -> None:
    with pytest.raises(UsageError, match="no such numbers"):
        export.export_run(run, form, tmp_path / "out", numbers=numbers)
    assert not list(tmp_path.iterdir())


def test_generation_stops_at_the_templates_end_token(run: Context, tmp_path: Path) -> None:
    call(run, "merged", tmp_path / "out", "--no-verify")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert made["eos_token_id"] == Encoder(tiny_tokenizer()).end_id
    assert not made.get("do_sample", False)


def test_what_answers_otherwise_is_an_error_and_kept(run: Context, tmp_path: Path) -> None:
    """The student's recorded answers are bent instead of the weights: the comparison is the same."""
    predictions = run.path("predictions/student.test.jsonl")
    kept = predictions.read_text()
    rows = [json.loads(line) for line in kept.splitlines()]
    rows[0]["value"] = next(label for label in run.task.labels if label != rows[0]["value"])
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        strict = call(run, "merged", tmp_path / "strict", "--max-changed", "0")
        loose = call(run, "merged", tmp_path / "loose", "--max-changed", "0.5")
    finally:
        predictions.write_text(kept)
    assert (strict.exit_code, loose.exit_code) == (1, 0)
    assert f"1 of {len(rows)} test items are answered differently" in strict.stderr
    assert (tmp_path / "strict" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["structured", "text"])
def test_other_kinds_of_tasks_are_checked_too(base: StudentRef, tmp_path: Path, kind: str) -> None:
    run = tiny_run(tmp_path / "workspace", base, kind)
    done = call(run, "adapter", tmp_path / "out", "--verify", "--json")
    found = json.loads(done.stdout)["check"]
    assert (found["items"], found["changed"]) == (len(run.examples("test")), 0)
    assert found["student_right"] is None  # there is no gold answer


@pytest.mark.parametrize(("products", "asked_again"), [("bfloat16", True), ("float32", False)])
def test_a_student_that_computed_otherwise_is_asked_again(run: Context, tmp_path: Path, products: str,
                                                          asked_again: bool) -> None:
    """Else what the run's own rounding changed would count against the export."""
    timings = run.path("timings/student.json")
    kept = read_json(timings)
    write_json(timings, {**kept, "identity": {**kept["identity"], "products": products}})
    try:
        check = export.export_run(run, "merged", tmp_path / "out", numbers="f32").check
    finally:
        write_json(timings, kept)
    assert (check.asked_again, check.changed) == (asked_again, 0)
    assert ("asked again" in check.sentence()) is asked_again


def test_a_check_sees_the_numbers_as_they_were_written(run: Context, tmp_path: Path) -> None:
    job = export.ExportJob(stages.student_ref(run, "student"), run.path("student"), run.task,
                           run.recipe.evaluate, run.rundir.name, "merged", "f16")
    made = export_local(job, tmp_path)
    with made.open(tmp_path) as predictor:
        assert predictor.identity["products"] == "float32"


def test_free_texts_that_are_nearly_alike_count_as_the_same() -> None:
    task = build_task(TextSpec(kind="text", prompt="{{ question }}"))
    words = [f"word{n}" for n in range(20)]

    def same(*after: str) -> bool:
        before, now = (Prediction("1", Answer(text), text) for text in (" ".join(words), " ".join(after)))
        return export._same(task, before, now)

    assert same(*words[:19], "other")
    assert not same(*words[:15], *("other",) * 5)


@pytest.mark.parametrize("numbers", ["q8_0", "f16", "bf16", "f32"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_gguf_read_back_has_the_models_logits(tmp_path: Path, family: str, numbers: str) -> None:
    # transformers reads a Qwen 3 with heads of 128, which all of them have
    changes = {"head_dim": 128} if family == "qwen3" else {}
    model, encoder = tiny_model(family, **changes), Encoder(tiny_tokenizer())
    write_gguf(model, encoder, tmp_path / "m.gguf", name="a/b", numbers=numbers)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
    ids = torch.tensor([encoder.prompt(CANARY)])
    with torch.inference_mode():
        before, after = model(ids).logits, again(ids).logits
    error = float((before - after).norm() / before.norm())
    assert error < {"q8_0": 0.02, "f16": 1e-3, "bf16": 0.01, "f32": 1e-6}[numbers]


def test_a_gguf_names_tokens_template_and_end(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    write_gguf(tiny_model("llama"), Encoder(tokenizer), tmp_path / "m.gguf", name="a/b", numbers="f16")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[:len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == 512 and tokens[-1] == "[PAD511]"
    assert fields["tokenizer.ggml.token_type"].contents()[:5] == [3, 3, 3, 3, 1]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"


OTHERS = sorted(set(FAMILIES) - {"llama", "qwen2", "qwen3"})


@pytest.mark.parametrize(("family", "changes", "reason"), [
    *((family, {}, "only llama, qwen2, qwen3") for family in OTHERS),
    ("llama", {"attention_bias": True}, "biases"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
    ("llama", {"hidden_act": "gelu"}, "only silu"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, "sliding window")])
def test_what_cannot_be_written_faithfully_is_refused(
        tmp_path: Path, family: str, changes: dict, reason: str) -> None:
    with pytest.raises(StudentError, match=reason):
        write_gguf(tiny_model(family, **changes), Encoder(tiny_tokenizer()), tmp_path / "m.gguf", name="a/b",
                   numbers="f16")
    assert not (tmp_path / "m.gguf").exists()


def cutting(*steps: object):
    """A tokenizer that cuts text by these steps."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE({"a": 0}, []))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_how_text_is_cut_is_named_or_refused() -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Split

    words = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
             r"|\s+(?!\S)|\s+")
    bare = ByteLevel(add_prefix_space=False, use_regex=False)
    assert pre_tokenizer(cutting(ByteLevel(add_prefix_space=False))) == "gpt-2"
    digits = Digits(individual_digits=True)
    assert pre_tokenizer(cutting(digits, ByteLevel(add_prefix_space=False))) == "smollm"
    for number, name in ((r"\p{N}", "qwen2"), (r"\p{N}{1,3}", "llama-bpe")):
        assert pre_tokenizer(cutting(Split(Regex(words % number), "isolated"), bare)) == name
    for strange in ([Split(Regex(r"\p{N}{1,2}"), "isolated"), bare], [Metaspace()], [ByteLevel()]):
        with pytest.raises(StudentError, match="cuts text in a way"):
            pre_tokenizer(cutting(*strange))


def test_a_tokenizer_that_changes_text_first_is_refused() -> None:
    from tokenizers import normalizers
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = cutting(ByteLevel(add_prefix_space=False))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # as Qwen's
    assert pre_tokenizer(tokenizer) == "gpt-2"
    for strange in (normalizers.Lowercase(), normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])):
        tokenizer.backend_tokenizer.normalizer = strange
        with pytest.raises(StudentError, match="changes text before it cuts it"):
            pre_tokenizer(tokenizer)


def test_the_ollama_template_is_the_chat_templates_turn() -> None:
    text = go_template(Encoder(tiny_tokenizer()), "<|im_end|>")
    assert text == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ else }}"
        "<|im_start|>user\n{{ end }}{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}"
        "<|im_end|>")


def test_the_modelfile_stops_where_the_student_does(run: Context, tmp_path: Path) -> None:
    call(run, "ollama", tmp_path / "out", "--no-verify")
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert {"FROM ./model.gguf", 'PARAMETER stop "<|im_end|>"', "PARAMETER temperature 0",
            "PARAMETER repeat_penalty 1", "PARAMETER num_ctx 512", "PARAMETER num_predict 24"} <= set(lines)


def test_the_vllm_line_names_the_run_and_a_rank_it_takes(run: Context, tmp_path: Path) -> None:
    (line,) = json.loads(call(run, "vllm", tmp_path / "a folder", "--json").stdout)["notes"]
    assert "--max-lora-rank 8 " in line  # the adapter's is 4
    assert f"--lora-modules {run.rundir.name.replace('/', '-')}='{tmp_path}/a folder'" in line
    # vLLM samples by what the base's generation_config.json says, and at a temperature of 1 by itself
    assert """--generation-config vllm --override-generation-config '{"temperature": 0}'""" in line


def test_a_folder_in_use_is_left_alone(run: Context, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        call(run, "adapter", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_folder_that_one_is_in_is_not_replaced(run: Context, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is the folder that you are in"):
        call(run, "adapter", Path())


def test_an_empty_folder_may_be_named_in_any_way(run: Context, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert call(run, "adapter", tmp_path / "link" / ".." / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "adapter_config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


def test_a_damaged_student_leaves_nothing_behind(run: Context, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(run.workspace.root, workspace)
    weights = workspace / "runs" / run.rundir.name / "student" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(StudentError, match="not as it was when the student was collected"):
        CliRunner().invoke(cli, ["export", run.run_name, "--workspace", str(workspace), "--to", "vllm", "-o",
                                 str(tmp_path / "out")], catch_exceptions=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["workspace"]


def test_who_can_export_is_told_by_the_weights(run: Context, base: StudentRef, tmp_path: Path) -> None:
    student, folder = stages.student_ref(run, "student"), run.path("student")
    whole = replace(student, backend="vertex", kind="model")
    for one, where in ((replace(student, backend="hf-jobs"), folder),
                       (whole, save_tiny_model(tmp_path / "m"))):
        assert export.find_exporter(one, where).__module__ == "distillctl_local.export"
    with pytest.raises(UsageError, match="stay at its provider"):
        export.find_exporter(StudentRef("openai", "hosted", "ft:x"), folder)


def test_a_linear_student_is_run_as_it_is(tmp_path: Path) -> None:
    run = linear_run(tmp_path / "workspace")
    with pytest.raises(UsageError, match="cannot be exported"):
        call(run, "merged", tmp_path / "out")
