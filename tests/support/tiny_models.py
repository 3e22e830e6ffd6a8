"""Tiny random-weight causal LMs of the families that students come from, with a tokenizer of words."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 512, "max_position_embeddings": 512,
          "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 256, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0,
               "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 256, "query_pre_attn_scalar": 8},
    "gemma4_text": {"num_hidden_layers": 4, "layer_types": 2 * ["sliding_attention", "full_attention"],
                    "global_head_dim": 16, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
                    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512,
                    "sliding_window": 256, "final_logit_softcapping": 3.0},  # as E2B
    "phi3": {"partial_rotary_factor": 0.5},
}
_TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
             "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def tiny_model(family: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A model of `family` in fp32 and eval mode; `changes` go over its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_SIZES, **FAMILIES.get(family, {}), **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


@cache
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with a chat template; the four ids after its bytes are special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"])
    wrapped.chat_template = _TEMPLATE
    return wrapped


def save_tiny_model(folder: Path, family: str = "llama", **changes: object) -> Path:
    """A model and its tokenizer as a folder that `student.model` can name."""
    tiny_model(family, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
