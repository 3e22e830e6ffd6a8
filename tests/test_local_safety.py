"""Hostile, damaged and foreign files beside a student. Each test makes its own from a sound adapter."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distillctl_local import safety
from distillctl_local.models import ModelFacts, facts_of
from distillctl_local.predictor import load_student
from distillctl_local.safety import (
    check_adapter,
    check_adapter_folder,
    check_student_model_folder,
    read_header,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.tiny_models import save_tiny_model, tiny_model
from support.tiny_students import tiny_base, tiny_student

from distillctl.backend import StudentRef
from distillctl.errors import StudentError
from distillctl.store.files import digest_tree

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ONE = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
BASE = facts_of(tiny_model("llama").config, source="org/tiny")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as PEFT leaves it, model card included."""
    folder = tmp_path_factory.mktemp("adapter")
    wrapped = get_peft_model(tiny_model("llama"), LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.save_pretrained(folder)
    edit(folder, base_model_name_or_path="org/tiny")
    return folder


@pytest.fixture
def adapter(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def reheader(folder: Path, change: Callable[[dict], object]) -> None:
    """Write the weights file anew with its header changed."""
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])


def refused(folder: Path, reason: str, base: ModelFacts = BASE) -> None:
    with pytest.raises(StudentError, match=reason):
        check_adapter_folder(folder, base)


# --- what is accepted -----------------------------------------------------------------------------------


def test_an_adapter_as_peft_saves_it(adapter: Path) -> None:
    check_adapter_folder(adapter, BASE)


def test_tokenizer_files_beside_it_are_left_alone(adapter: Path) -> None:
    (adapter / "tokenizer.json").write_text("{}")
    (adapter / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    check_adapter_folder(adapter, BASE)


def test_a_base_in_a_folder_matches_by_its_shapes(adapter: Path) -> None:
    check_adapter_folder(adapter, replace(BASE, source="/models/tiny"))


def test_an_alias_and_its_hub_id_are_the_same_base(adapter: Path) -> None:
    edit(adapter, base_model_name_or_path="smollm2-135m")
    check_adapter_folder(adapter, replace(BASE, source="HuggingFaceTB/SmolLM2-135M-Instruct"))


# --- files ----------------------------------------------------------------------------------------------


class Touches:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "x.pth", "x.pkl", "x.ckpt"])
def test_a_pickle(adapter: Path, tmp_path: Path, name: str) -> None:
    (adapter / name).write_bytes(pickle.dumps(Touches(tmp_path / "ran")))
    refused(adapter, "pickle")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_under_the_name_of_the_weights(adapter: Path, tmp_path: Path) -> None:
    torch.save(Touches(tmp_path / "ran"), adapter / WEIGHTS)
    refused(adapter, "no sound safetensors file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("name", "reason"), [
    ("modeling.py", "is code"), ("lib.so", "is code"), ("chat_template.jinja", "chat template"),
    ("chat_template.json", "chat template"), ("notes.html", "not part of a student")])
def test_a_file_that_does_not_belong(adapter: Path, name: str, reason: str) -> None:
    (adapter / name).write_text("{{ messages }}")
    refused(adapter, reason)


@pytest.mark.parametrize(("key", "reason"), [("chat_template", "chat template"), ("auto_map", "code to run")])
def test_a_tokenizer_config_that_brings_more_than_settings(adapter: Path, key: str, reason: str) -> None:
    (adapter / "tokenizer_config.json").write_text(json.dumps({key: "{{ x }}"}))
    refused(adapter, reason)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_part(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    refused(adapter, f"{name}: is missing")


def test_a_link_out_of_the_folder(adapter: Path, tmp_path: Path) -> None:
    (adapter / WEIGHTS).rename(tmp_path / "elsewhere")
    (adapter / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    refused(adapter, "only plain files")


def test_a_folder_within(adapter: Path) -> None:
    (adapter / "more").mkdir()
    refused(adapter, "only plain files")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is missing")


def test_all_files_that_do_not_belong_are_named_at_once(adapter: Path) -> None:
    for name in ("a.bin", "b.py", "c.txt"):
        (adapter / name).write_text("")
    with pytest.raises(StudentError) as error:
        check_adapter_folder(adapter, BASE)
    assert len(error.value.problems) == 3


def test_files_without_end_are_not_named_one_by_one(adapter: Path) -> None:
    for number in range(30):
        (adapter / f"{number}.pkl").write_text("")
    with pytest.raises(StudentError) as error:
        check_adapter_folder(adapter, BASE)
    assert len(error.value.problems) == 10


def test_a_folder_of_far_too_many_files_is_not_looked_through(
        adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "_MOST_FILES", 2)
    refused(adapter, "more than 2 files")


# --- configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    {"peft_type": "PROMPT_TUNING"}, {"r": 0}, {"r": "4"}, {"r": True}, {"lora_alpha": None},
    {"lora_alpha": float("nan")}, {"lora_alpha": True}, {"lora_alpha": 0}, {"lora_alpha": 1e300},
    {"lora_alpha": 10**400}, {"auto_map": {"x": "y.z"}},
    {"auto_mapping": {"parent_library": "os"}}, {"use_dora": True}, {"modules_to_save": ["lm_head"]},
    {"alora_invocation_tokens": [1]}, {"layer_replication": [[0, 1]]}, {"rank_pattern": {"q_proj": 2}},
    {"base_model_name_or_path": "org/other"}], ids=str)
def test_a_setting_that_is_not_a_plain_lora_for_this_base(adapter: Path, changes: dict) -> None:
    edit(adapter, **changes)
    refused(adapter, next(iter(changes)))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"' + "x" * 2**20 + '"'],
                         ids=["empty", "list", "cut", "deep", "large"])
def test_a_configuration_that_is_no_small_json_object(adapter: Path, text: str) -> None:
    (adapter / CONFIG).write_text(text)
    refused(adapter, "cannot be read")


# --- the weights file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2**63, 2**40, 100 * 2**20 + 1])
def test_a_header_that_claims_more_than_there_is(adapter: Path, length: int) -> None:
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
    refused(adapter, "header claims")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_off(adapter: Path, keep: int) -> None:
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(data[:keep])
    refused(adapter, "no sound safetensors file")


def test_bytes_after_the_last_tensor(adapter: Path) -> None:
    with (adapter / WEIGHTS).open("ab") as file:
        file.write(b"#!/bin/sh")
    refused(adapter, "its tensors need")


def overlap(header: dict) -> None:
    names = sorted(name for name in header if name != "__metadata__")
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def gap(header: dict) -> None:
    header.pop(ONE.format("A"))


@pytest.mark.parametrize("change", [
    overlap, gap, lambda header: [], lambda header: {"x": 1}, lambda header: {"x": {"dtype": "F32"}},
    lambda header: header[ONE.format("A")].update(dtype="OBJECT"),
    lambda header: header[ONE.format("A")].update(shape=[4, -32]),
    lambda header: header[ONE.format("A")].update(shape=[True, 128]),
    lambda header: header[ONE.format("A")].update(shape=[10**30]),
    lambda header: header[ONE.format("A")].update(data_offsets=[0])],
    ids=["overlap", "gap", "list", "number", "half", "dtype", "negative", "bool", "huge", "offsets"])
def test_a_header_that_does_not_describe_its_bytes(adapter: Path, change: Callable[[dict], object]) -> None:
    reheader(adapter, change)
    refused(adapter, "no sound safetensors file")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 1500), st.integers(0, 255))
def test_any_changed_byte_of_the_header_is_read_or_refused(adapter: Path, sound: Path, at: int,
                                                           value: int) -> None:
    data = bytearray((sound / WEIGHTS).read_bytes())
    data[at] = value
    (adapter / WEIGHTS).write_bytes(data)
    try:
        read_header(adapter / WEIGHTS)
    except StudentError:
        return


# --- tensors --------------------------------------------------------------------------------------------


def test_a_tensor_that_is_no_lora_weight(adapter: Path) -> None:
    retensor(adapter, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.ones(2, 2)}))
    refused(adapter, "no LoRA weight")


def test_whole_numbers_as_weights(adapter: Path) -> None:
    retensor(adapter, lambda tensors: tensors.update(
        {ONE.format("A"): torch.ones(4, 32, dtype=torch.int64)}))
    refused(adapter, "no LoRA weight")


def test_a_half_without_its_other_half(adapter: Path) -> None:
    retensor(adapter, lambda tensors: tensors.pop(ONE.format("B")))
    refused(adapter, "only one half")


def test_another_rank_than_the_configurations(adapter: Path) -> None:
    edit(adapter, r=8)
    refused(adapter, "has rank 4, the configuration says 8")


def test_a_base_of_another_width(adapter: Path) -> None:
    refused(adapter, "made for another base", replace(BASE, hidden_size=64))


def test_a_base_with_other_heads(adapter: Path) -> None:
    refused(adapter, "made for another base", replace(BASE, kv_heads=4))


def test_a_base_of_fewer_layers(adapter: Path) -> None:
    refused(adapter, "belongs to layer 1, the base has 1", replace(BASE, layers=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("half", "AB")
def test_a_weight_that_is_no_number(adapter: Path, half: str, value: float) -> None:
    retensor(adapter, lambda tensors: tensors[ONE.format(half)][1].fill_(value))
    refused(adapter, "NaN or infinity")


def test_a_layer_that_is_zero_throughout(adapter: Path) -> None:
    retensor(adapter, lambda tensors: tensors[ONE.format("A")].zero_())
    refused(adapter, "zero throughout")


def test_an_adapter_as_it_was_before_training(adapter: Path) -> None:
    retensor(adapter, lambda tensors: [t.zero_() for name, t in tensors.items() if ".lora_B." in name])
    refused(adapter, "changes nothing")


@pytest.mark.parametrize("size", [1e9, 1e30])  # attention's sums overflow, or the merged weights themselves
def test_an_adapter_whose_sums_overflow(tmp_path: Path, size: float) -> None:
    student = tiny_student(tiny_base(tmp_path / "base"), tmp_path / "adapter", size=size)
    with pytest.raises(StudentError, match="NaN or infinite: its numbers are too large"):
        load_student(student, tmp_path / "adapter", dtype=torch.float32, device="cpu")


def test_weights_in_bf16_are_read_too(adapter: Path) -> None:
    retensor(adapter, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    check_adapter_folder(adapter, BASE)


def test_no_tensors_at_all(adapter: Path) -> None:
    retensor(adapter, lambda tensors: tensors.clear())
    refused(adapter, "holds no weights")


# --- digests --------------------------------------------------------------------------------------------


def test_the_files_that_were_collected(adapter: Path) -> None:
    check_adapter(adapter, digest_tree(adapter), BASE)


def test_a_changed_file(adapter: Path) -> None:
    files = digest_tree(adapter)
    retensor(adapter, lambda tensors: tensors[ONE.format("A")].mul_(2))
    with pytest.raises(StudentError, match="is not as it was"):
        check_adapter(adapter, files, BASE)


def test_a_file_that_came_later(adapter: Path) -> None:
    files = digest_tree(adapter)
    (adapter / "tokenizer.json").write_text("{}")
    with pytest.raises(StudentError, match="not among the files"):
        check_adapter(adapter, files, BASE)


# --- whole models ---------------------------------------------------------------------------------------


def test_a_whole_model_as_transformers_saves_it(tmp_path: Path) -> None:
    check_student_model_folder(save_tiny_model(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "run.sh"])
def test_a_whole_model_with_more_than_weights_and_json(tmp_path: Path, name: str) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / name).write_text("")
    with pytest.raises(StudentError, match=name):
        check_student_model_folder(tmp_path)


def test_a_folder_within_a_whole_model(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "more" / "deep").mkdir(parents=True)
    with pytest.raises(StudentError, match="only plain files"):
        check_student_model_folder(tmp_path)


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_whole_model_s_hostile_template_is_refused_when_it_is_opened(tmp_path: Path, where: str) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    path, template = tmp_path / where, "{{ 'x' * 10 ** 10 }}"
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    path.write_text(template if path.suffix == ".jinja" else json.dumps(
        {**settings, "chat_template": template}))
    student = StudentRef("vertex", "model", "org/tiny", ".", digest_tree(tmp_path))
    with pytest.raises(StudentError, match=r"chat template(?s:.*)256 MiB of memory"):
        load_student(student, tmp_path, dtype=torch.float32, device="cpu")
