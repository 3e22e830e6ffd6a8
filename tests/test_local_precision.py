"""Products in bf16, all else in fp32."""

from __future__ import annotations

import pytest
import torch
from distillctl_local import precision
from distillctl_local.precision import multiply_in_bf16
from support.tiny_models import FAMILIES, tiny_model

IDS = torch.arange(4, 60)[None]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_stay_close_to_fp32(family: str) -> None:
    exact = tiny_model(family)(input_ids=IDS).logits
    mixed = multiply_in_bf16(tiny_model(family))(input_ids=IDS).logits
    assert mixed.dtype == torch.float32
    most = 0.1 if family == "gemma4_text" else 0.02  # its scores are not scaled: rounding grows in them
    assert (mixed - exact).abs().max() < most * exact.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_are_those_of_weights_that_are_not_laid_out_for_onednn(
        family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = multiply_in_bf16(tiny_model(family))(input_ids=IDS).logits
    monkeypatch.setattr(precision, "_onednn_has_bf16", lambda: False)
    plain = multiply_in_bf16(tiny_model(family))
    assert not any(hasattr(module, "packed") for module in plain.modules())
    assert (mixed - plain(input_ids=IDS).logits).abs().max() < 0.01 * mixed.abs().max()


@pytest.mark.skipif(not precision._onednn_has_bf16(), reason="needs a processor on which oneDNN has bf16")
def test_weights_that_are_laid_out_for_onednn_are_kept_once() -> None:
    model = multiply_in_bf16(tiny_model("llama"))
    layer = model.model.layers[0].mlp.up_proj
    assert (layer.packed.shape, layer.weight.numel()) == ((64, 32), 0)


@torch.inference_mode()
def test_they_are_closer_than_those_of_a_model_wholly_in_bf16() -> None:
    exact = tiny_model("qwen2")(input_ids=IDS).logits
    mixed = multiply_in_bf16(tiny_model("qwen2"))(input_ids=IDS).logits
    whole = tiny_model("qwen2").bfloat16()(input_ids=IDS).logits.float()
    assert (mixed - exact).abs().mean() < 0.6 * (whole - exact).abs().mean()


def test_a_model_loaded_in_bf16_gets_all_but_its_products_in_fp32() -> None:
    model = multiply_in_bf16(tiny_model("qwen2").bfloat16())
    head = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        product = name.endswith("_proj.weight")
        assert parameter.dtype == (torch.bfloat16 if product else torch.float32), name
    assert head.weight.dtype == torch.float32


def test_tied_embeddings_stay_tied() -> None:
    model = multiply_in_bf16(tiny_model("llama").bfloat16())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
