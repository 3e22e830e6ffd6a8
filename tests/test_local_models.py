"""Base models: what is known from their files, what is refused, and the model that comes as a package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from distillctl_local import models
from distillctl_local.models import ALIASES, base_digest, facts_at_hand, facts_of, load_base, load_tokenizer
from support.tiny_models import FAMILIES, save_tiny_model

from distillctl.errors import StudentError

ALIAS = "smollm2-135m"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path | str):
    return load_base(str(folder), dtype="float32", device="cpu")


def in_process(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- facts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_files_alone_tell_what_the_loaded_model_tells(family: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, family)
    loaded = load(tmp_path)
    stored = {tensor.data_ptr(): tensor.numel() for tensor in loaded.state_dict().values()}  # tied ones once
    assert facts_at_hand(str(tmp_path)) == facts_of(
        loaded.config, parameters=sum(stored.values()), source=str(tmp_path.resolve()))


def test_facts_need_neither_torch_nor_transformers(saved: Path) -> None:
    assert in_process(
        "import sys; from distillctl_local import models\n"
        f"assert models.facts_at_hand({str(saved)!r}).layers == 2\n"
        f"assert models.facts_at_hand({ALIAS!r}).layers == 30 and models.is_at_hand({str(saved)!r})\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))") == "set()"


def test_values_that_config_json_leaves_to_the_family_are_known(folder: Path) -> None:
    before = facts_at_hand(str(folder))
    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    after = facts_at_hand(str(folder))
    assert after.context == 2048  # llama's default
    assert after.layers == before.layers


def test_layers_with_a_state_are_told_apart(folder: Path) -> None:
    assert not facts_at_hand(str(folder)).linear_attention
    change_config(folder, layer_types=["linear_attention", "full_attention"])
    assert facts_at_hand(str(folder)).linear_attention


def test_a_model_reads_as_far_as_it_has_one_rotary_scale(tmp_path: Path) -> None:
    """Phi's LongRoPE computes a row of more tokens with other factors, its first ones too."""
    factors = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    save_tiny_model(tmp_path, "phi3", partial_rotary_factor=1.0, rope_scaling=factors,
                    original_max_position_embeddings=64)
    assert facts_at_hand(str(tmp_path)).context == 64


def test_a_window_that_is_switched_off_is_none(folder: Path) -> None:
    change_config(folder, sliding_window=64)
    assert facts_at_hand(str(folder)).sliding_window == 64
    change_config(folder, use_sliding_window=False)
    assert facts_at_hand(str(folder)).sliding_window is None


def test_the_language_part_of_a_multimodal_model_counts(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "both", "text_config": config}))
    assert facts_at_hand(str(folder)).layers == 2


def test_the_licence_is_the_model_cards(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# license: none\n")
    assert facts_at_hand(str(folder)).licence == "apache-2.0"


def test_a_card_without_a_licence_is_unknown(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\n---\nlicense: mit\n")
    assert facts_at_hand(str(folder)).licence is None


def test_a_layer_may_have_a_width_of_its_own(folder: Path) -> None:
    change_config(folder, intermediate_size=[64, 128])  # as Gemma 3n's
    assert facts_at_hand(str(folder)).intermediate_size == 96


def test_layers_of_several_sizes_have_their_mean(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gemma4_text", num_key_value_heads=3, num_global_key_value_heads=1,
                    num_attention_heads=6, attention_k_eq_v=True)
    facts = facts_at_hand(str(tmp_path))
    assert (facts.head_dim, facts.kv_heads) == (12, 2)  # 8 and 16, 3 and 1
    assert facts.intermediate_size == 96  # 64 and, of the layers that share states, 128
    assert facts.shares_states


@pytest.mark.parametrize("sizes", [{"global_head_dim": 16}, {"per_layer_config": {"1": {"head_dim": 16}}}])
def test_sizes_that_config_json_has_for_some_layers_are_asked_of_transformers(
        folder: Path, sizes: dict[str, object]) -> None:
    change_config(folder, model_type="gemma4_text", layer_types=["sliding_attention", "full_attention"],
                  **sizes)
    assert facts_at_hand(str(folder)).head_dim == 12


def test_of_several_windows_the_shortest_counts(folder: Path) -> None:
    change_config(folder, model_type="mistral", sliding_window=64,
                  per_layer_config={"1": {"sliding_window": 16}})
    assert facts_at_hand(str(folder)).sliding_window == 16


# --- identity -----------------------------------------------------------------------------------------


def test_a_digest_follows_the_content_not_the_place(saved: Path, folder: Path) -> None:
    assert base_digest(str(saved)) == base_digest(str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert base_digest(str(saved)) != base_digest(str(folder))


def test_an_alias_has_the_name_of_the_same_model_on_the_hub() -> None:
    assert models.source_of(ALIAS) == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_loaded_model_carries_the_name_that_adapters_get(folder: Path) -> None:
    assert load(folder).name_or_path == str(folder.resolve())


# --- the Hub ------------------------------------------------------------------------------------------


def test_a_hub_model_that_cannot_be_had_says_what_to_do() -> None:
    assert not models.is_at_hand("nobody/nothing")
    assert facts_at_hand("nobody/nothing") is None
    with pytest.raises(StudentError, match=r"(?s)nobody/nothing.*check the network, or give a local folder"):
        load_tokenizer("nobody/nothing")


def test_a_hub_model_is_read_from_the_cache_by_its_commit(saved: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--org--small"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(saved, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    code = ("from distillctl_local import models as m\n"
            "assert m.is_at_hand('org/small')\n"
            "print(m.facts_at_hand('org/small').source, m.base_digest('org/small'))")
    source, digest = in_process(code, HF_HUB_CACHE=str(tmp_path)).split()
    assert source == "org/small"
    (repo / "snapshots" / commit).rename(repo / "snapshots" / commit[::-1])
    (repo / "refs" / "main").write_text(commit[::-1])
    assert in_process(code, HF_HUB_CACHE=str(tmp_path)).split()[1] != digest


def test_a_download_that_lacks_a_part_is_not_at_hand(saved: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--small" / "snapshots" / "main"
    shutil.copytree(saved, snapshot)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("main")
    assert in_process("from distillctl_local import models as m; print(m.is_at_hand('org/small'))",
                      HF_HUB_CACHE=str(tmp_path)) == "False"


# --- what is refused ----------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=f"no such model folder(?s:.*){ALIAS}"):
        load(tmp_path / "nowhere")


def test_pickled_weights_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StudentError, match="never read"):
        load(folder)


def test_pickled_weights_beside_the_others_are_left_alone(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    load(folder)


def test_a_pickle_under_the_name_of_the_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(
        b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(StudentError, match="no sound safetensors file"):
        load(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudentError, match=r"NaN or infinity(?s:.*)layers\.1\.mlp"):
        load(folder)


def test_an_adapter_in_place_of_a_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(StudentError, match="is an adapter"):
        load(folder)


def test_a_quantised_model(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(StudentError, match="unquantised"):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(StudentError, match=r"config\.json: cannot be read"):
        load(folder)


def test_code_that_comes_with_a_model_does_not_run(folder: Path, tmp_path: Path) -> None:
    change_config(folder, model_type="of_its_own", architectures=["Own"], auto_map={
        "AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(StudentError, match="never run"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("config", [{"model_type": "brand_new", "hidden_size": 64}, {"hidden_size": 64}])
def test_a_family_that_transformers_does_not_know(folder: Path, config: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StudentError, match="the model cannot be read"):
        facts_at_hand(str(folder))


def test_weights_that_leave_a_layer_random(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudentError, match=r"random(?s:.*)layers\.1\.mlp"):
        load(folder)


def test_weights_of_another_size(folder: Path) -> None:
    change_config(folder, intermediate_size=48)
    with pytest.raises(StudentError):
        load(folder)


def test_weights_that_are_cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(StudentError):
        facts_at_hand(str(folder))
    with pytest.raises(StudentError):
        load(folder)


# --- the packaged model -------------------------------------------------------------------------------


def test_the_packages_file_is_what_its_record_says() -> None:
    path, digest = models._packaged(ALIAS)
    assert models.digest_file(path) == digest


@pytest.mark.slow
def test_the_packaged_model_is_unpacked_once_and_answers(tmp_path: Path, monkeypatch) -> None:
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    left_by_a_kill = tmp_path / "distillctl" / "models" / f"{ALIAS}-{base_digest(ALIAS)[7:23]}.partial"
    left_by_a_kill.mkdir(parents=True)
    (left_by_a_kill / "model.safetensors").write_bytes(b"half")
    model = load_base(ALIAS, dtype=torch.float32, device="cpu")
    tokenizer = load_tokenizer(ALIAS)
    assert not left_by_a_kill.exists()
    assert facts_of(model.config, parameters=model.num_parameters(), source=model.name_or_path,
                    licence="apache-2.0") == ALIASES[ALIAS].facts
    assert not getattr(model, "is_quantized", False)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.tokenize("v1  2024") == ["v", "1", "ĠĠ", "2", "0", "2", "4"]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                           add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    weights = models.model_folder(ALIAS) / "model.safetensors"
    made = weights.stat().st_mtime_ns
    load_tokenizer(ALIAS)
    assert weights.stat().st_mtime_ns == made
