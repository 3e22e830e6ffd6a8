"""A new adapter: where it sits, what it refuses, and that what was trained is what is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.threads import torch_threads
from support.tiny_models import FAMILIES as TINY
from support.tiny_models import tiny_model

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local import lora  # noqa: E402
from distillctl_local.adapter import add_adapter  # noqa: E402
from distillctl_local.facts import facts_of  # noqa: E402
from distillctl_local.losses import next_token  # noqa: E402
from distillctl_local.merge import merge_adapter  # noqa: E402
from distillctl_local.prefix import accumulate  # noqa: E402
from distillctl_local.result import write_adapter  # noqa: E402
from distillctl_local.safety import check_adapter  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from test_local_training_prefix import ALL, assert_same, gradients, make_rows, reference  # noqa: E402

from distillctl.errors import UsageError  # noqa: E402
from distillctl.recipe.models import LoraSpec, TrainSpec  # noqa: E402
from distillctl.store.files import digest_tree  # noqa: E402

ROWS = make_rows(4)
IDS = torch.tensor([ROWS[0].ids])
_EYE = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 512, "max_position_embeddings": 512}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": {},
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4},
    "olmo": {"clip_qkv": 8.0},  # in place
    "qwen3_5": {"text_config": {**_TEXT, "layer_types": ["linear_attention", "full_attention"]}},
    "gemma3": {"text_config": {**_TEXT, "model_type": "gemma3_text", "query_pre_attn_scalar": 8},
               "vision_config": _EYE, "mm_tokens_per_image": 4},
    "gemma4": {"text_config": {**_TEXT, **TINY["gemma4_text"]}, "vision_config": None, "audio_config": None},
    "qwen3_moe": {"num_experts": 4, **_EXPERTS},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8,
                    "qk_nope_head_dim": 8, "num_key_value_heads": 4, **_EXPERTS},
}


def adapted_names(model: torch.nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_is_what_is_opened(family: str, layers: int | None, tmp_path: Path) -> None:
    model = tiny_model(family, **FAMILIES[family])
    model.name_or_path = "a-team/tiny"
    student = add_adapter(model, TrainSpec(), layers=layers).train()
    accumulate(model, ROWS, ALL, next_token)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter -= 3.0 * parameter.grad
    write_adapter(student, {"model": "a-team/tiny", "revision": None}, tmp_path)
    base = tiny_model(family, **FAMILIES[family])
    check_adapter(tmp_path, digest_tree(tmp_path), facts_of(base.config))
    merge_adapter(base, tmp_path, IDS[0].tolist())
    with torch.no_grad():
        assert torch.allclose(base(IDS).logits, student.eval()(IDS).logits, atol=1e-4)


def test_a_model_that_sees_is_adapted_in_its_language_part_alone() -> None:
    names = adapted_names(add_adapter(tiny_model("gemma3", **FAMILIES["gemma3"]), TrainSpec()))
    assert len(names) == 14
    assert all("language_model" in name for name in names)


def test_a_mixture_keeps_its_experts() -> None:
    names = adapted_names(add_adapter(tiny_model("mixtral", **FAMILIES["mixtral"]), TrainSpec()))
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_mixtures_batches_side_by_side_give_the_plain_gradients() -> None:
    model = tiny_model("qwen3_moe", **FAMILIES["qwen3_moe"])
    student = add_adapter(model, TrainSpec()).train()
    reference(model, ROWS)
    wanted = gradients(student)
    with torch_threads(2):
        accumulate(model, ROWS, ALL, next_token)
    assert_same(gradients(student), wanted)


def test_an_adapter_that_unsloth_marked_is_written_as_one_that_can_be_opened(tmp_path: Path) -> None:
    """As unsloth_zoo's `fix_lora_auto_mapping` marks every adapter that is made with Unsloth."""
    student = add_adapter(tiny_model("llama"), TrainSpec())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter += 0.01
    student.peft_config["default"].base_model_name_or_path = "a-team/tiny"
    student.peft_config["default"].auto_mapping = {
        "base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama",
        "unsloth_fixed": True}
    write_adapter(student, {"model": "a-team/tiny", "revision": None}, tmp_path)
    check_adapter(tmp_path, digest_tree(tmp_path), facts_of(student.get_base_model().config))


@pytest.mark.parametrize(("family", "targets"), [
    ("llama", ["embed_tokens"]), ("llama", ["q_porj"]),
    ("mixtral", ["w1", "w2", "w3"]), ("qwen3_moe", ["gate_proj", "up_proj", "down_proj"])])
def test_targets_that_no_student_can_have_are_refused_before_training(family: str,
                                                                      targets: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        add_adapter(tiny_model(family, **FAMILIES[family]), TrainSpec(lora=LoraSpec(targets=targets)))
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("train.lora.targets", targets)
    assert "q_proj" in problem.hint


@pytest.mark.parametrize("family", ["phi", "opt"])
def test_a_base_drops_nothing_of_its_own(family: str) -> None:
    """Phi's dropout is in layers, OPT's a number beside them."""
    drops = ({"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5} if family == "phi"
             else {"dropout": 0.5, "ffn_dim": 64, "word_embed_proj_dim": 32})
    model = tiny_model(family, **drops).train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    lora.drop_nothing(model)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
