"""A student as a GGUF file (github.com/ggml-org/ggml, docs/gguf.md), written with llama.cpp's own library
`gguf`.

llama.cpp's converter is a script of its repository that no kept package carries; this writes what it would
write for the families below, and refuses everything else rather than writing a file that answers wrongly.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from distillctl.errors import Problem, StudentError
from distillctl.export import ExportJob, Numbers
from distillctl_local.encode import Encoder
from distillctl_local.models import facts_of
from distillctl_local.templates import exported

FAMILIES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
_TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "f16": gguf.GGMLQuantizationType.F16,
          "bf16": gguf.GGMLQuantizationType.BF16, "f32": gguf.GGMLQuantizationType.F32}
_FILE_TYPES = {"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "f16": gguf.LlamaFileType.MOSTLY_F16,
               "bf16": gguf.LlamaFileType.MOSTLY_BF16, "f32": gguf.LlamaFileType.ALL_F32}
_BLOCK = 32  # weights that share a scale in Q8_0

# How text is cut before tokens are looked up. A GGUF only names it, by llama.cpp's own names.
_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
_CUTS = {_WORDS % r"\p{N}": "qwen2", _WORDS % r"\p{N}{1,3}": "llama-bpe"}


def write_gguf(model: PreTrainedModel, encoder: Encoder, path: Path, *, name: str, numbers: Numbers) -> None:
    """Write a model with its tokenizer and chat template; answers end at the template's end token.

    Raises StudentError for what cannot be written faithfully.
    """
    check_supported(model)
    pre = pre_tokenizer(encoder.tokenizer)
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[FAMILIES[config.model_type]], use_temp_file=True)
    try:
        writer.add_name(name)
        _add_shape(writer, model)
        writer.add_file_type(_FILE_TYPES[numbers])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(writer, encoder, pre, config.vocab_size)
        for key, tensor in _tensors(model):
            data, kind = _numbers(tensor, numbers)
            writer.add_tensor(key, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def check_supported(model: PreTrainedModel) -> None:
    """Raises StudentError for an architecture, or a variant of one, that is not written here."""
    config = model.config

    def refuse(what: str, value: object) -> StudentError:
        return StudentError(Problem(f"is not written as GGUF here: {what}", value=value,
                                    hint="export it as merged, and convert that with llama.cpp's "
                                         "convert_hf_to_gguf.py"))

    if config.model_type not in FAMILIES:
        raise refuse(f"only {', '.join(FAMILIES)} models are", config.model_type)
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise refuse("scaled rotary positions are not", rope["rope_type"])
    if facts_of(config).sliding_window is not None:
        raise refuse("a sliding window is not", config.sliding_window)
    if config.hidden_act != "silu":
        raise refuse("only silu is", config.hidden_act)
    if config.model_type == "llama" and (config.attention_bias or config.mlp_bias):
        raise refuse("biases of a llama are not", "attention_bias, mlp_bias")


def pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name of how this tokenizer cuts text. Raises StudentError where it has none that is known
    here: llama.cpp would then read prompts differently."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    changes = (made["normalizer"] or {}).get("type")
    if changes not in (None, "NFC"):  # a GGUF cannot say it
        raise StudentError(Problem("its tokenizer changes text before it cuts it, which llama.cpp would not",
                                   where=tokenizer.name_or_path, field="normalizer", value=changes,
                                   hint="export it as merged, and convert that with llama.cpp's own script"))
    steps = made["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    plain = last.get("type") == "ByteLevel" and not last["add_prefix_space"]
    if made["model"]["type"] == "BPE" and plain:
        if kinds == ["ByteLevel"] and last["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and last["use_regex"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not last["use_regex"] and (
                found := _CUTS.get(steps[0]["pattern"].get("Regex"))):
            return found
    raise StudentError(Problem("its tokenizer cuts text in a way that is not known here by llama.cpp's name",
                               where=tokenizer.name_or_path, value=kinds,
                               hint="export it as merged, and convert that with llama.cpp's own script"))


def _add_shape(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config, facts = model.config, facts_of(model.config)
    writer.add_context_length(facts.context)
    writer.add_embedding_length(facts.hidden_size)
    writer.add_block_count(facts.layers)
    writer.add_feed_forward_length(facts.intermediate_size)
    writer.add_head_count(facts.heads)
    writer.add_head_count_kv(facts.kv_heads)
    writer.add_key_length(facts.head_dim)
    writer.add_value_length(facts.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(facts.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, encoder: Encoder, pre: str, vocabulary: int) -> None:
    tokenizer = encoder.tokenizer
    made = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = tokenizer.added_tokens_decoder
    by_id = {number: text for text, number in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for number in range(vocabulary):
        if number not in by_id:
            tokens.append(f"[PAD{number}]")
            kinds.append(gguf.TokenType.UNUSED)
        else:
            tokens.append(by_id[number])
            marked = added.get(number)
            kinds.append(gguf.TokenType.NORMAL if marked is None else gguf.TokenType.CONTROL
                         if marked.special else gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in made["merges"]]
    if merges:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(encoder.end_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)  # the chat template writes what belongs there
    writer.add_chat_template(exported(tokenizer))  # llama-server would take ChatML where there is none


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under its GGUF name, a tied output head left out."""
    config, facts = model.config, facts_of(model.config)
    names = gguf.get_tensor_name_map(FAMILIES[config.model_type], facts.layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise StudentError(Problem("a weight has no name in GGUF", value=key))
        if config.model_type == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            heads = facts.heads if "q_proj" in key else facts.kv_heads
            # llama.cpp turns neighbouring pairs of a llama's head, transformers its two halves
            tensor = tensor.view(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
        yield name, tensor


def _numbers(tensor: torch.Tensor, wanted: Numbers) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """The tensor as it is stored: vectors whole, matrices as wanted."""
    values = tensor.detach().float().contiguous().numpy()
    if values.ndim == 1:
        return values, gguf.GGMLQuantizationType.F32
    kind = _TYPES[wanted]
    if wanted == "q8_0" and values.shape[-1] % _BLOCK:
        kind = gguf.GGMLQuantizationType.F16
    return gguf.quants.quantize(values, kind), kind


def template_in(path: Path) -> str:
    """The chat template as it stands in a file."""
    return gguf.GGUFReader(path).fields[gguf.Keys.Tokenizer.CHAT_TEMPLATE].contents()


@contextmanager
def open_gguf(job: ExportJob, encoder: Encoder, path: Path) -> Iterator[Any]:
    """A predictor that answers with the weights as they stand in the file, read by transformers."""
    from distillctl_local.predictor import LocalPredictor, identity_of_mode

    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting switches off
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32, attn_implementation="eager").eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise StudentError(Problem(f"cannot be read back: {str(error).splitlines()[0]}", str(path),
                                   hint="--no-verify exports it unchecked")) from None
    try:
        yield LocalPredictor(model, encoder, job.task, job.how, {
            "model": str(path), **identity_of_mode(job.task, job.how)})
    finally:
        del model
        gc.collect()
