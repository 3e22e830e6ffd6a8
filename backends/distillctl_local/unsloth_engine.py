"""`engine: unsloth`: QLoRA on one NVIDIA GPU with Unsloth's model and TRL's SFTTrainer, which it patches.

Unsloth must be imported before transformers, PEFT and TRL, or they stay unpatched: `train` imports it first,
and nothing else here is imported before. Rows are tokenised by us, with the end token that the chat template
closes a turn with: neither Unsloth's changed tokenizers nor its search for the markers of an answer, which
learns nothing where they are not found, has a part in what is learnt. Checked against the source of unsloth
2026.10.9; never run on a GPU by us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillctl.errors import Problem, UsageError
from distillctl.recipe.models import TrainSpec
from distillctl.types import JSON
from distillctl_local.settings import LocalSettings

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftModel

    from distillctl_local.data import Row

ROWS_AT_ONCE = 4
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LAYERS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
OF_EXPERTS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj"}


def train(folder: Path, job: dict[str, JSON], spec: TrainSpec, settings: LocalSettings,
          tell: Callable[..., None]) -> PeftModel:
    """Train the job in `folder`; returns the model with its adapter. tell: takes a message and numbers."""
    import unsloth  # noqa: I001 - first
    import torch
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    from distillctl_local.data import encode_rows
    from distillctl_local.encode import Encoder
    from distillctl_local.fit import Tell, arguments, last_checkpoint
    from distillctl_local.models import facts_at_hand, has_experts, load_tokenizer, model_folder, source_of

    weights = model_folder(job["model"], job["revision"])
    adapter = adapter_arguments(spec, settings, has_experts(job["model"], job["revision"]))
    tokenizer = load_tokenizer(job["model"], job["revision"])
    limit = min(spec.max_length, facts_at_hand(job["model"], job["revision"]).context)
    rows = encode_rows(folder / "train.jsonl", Encoder(tokenizer), limit)
    length = max(len(row.ids) for row in rows)
    tell(f"on cuda with Unsloth {unsloth.__version__}, the base in {settings.bits or 4} bits")
    model, _ = unsloth.FastLanguageModel.from_pretrained(**model_arguments(weights, length, spec, settings))
    model = unsloth.FastLanguageModel.get_peft_model(model, **adapter)
    model.peft_config["default"].base_model_name_or_path = source_of(job["model"])
    tokenizer = with_padding(tokenizer)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)

    def trainer(rows_at_once: int) -> SFTTrainer:
        config = SFTConfig(**arguments(folder, spec, settings), **trainer_arguments(spec, rows_at_once),
                           max_length=length, bf16=bf16, fp16=not bf16)
        return SFTTrainer(model=model, args=config, processing_class=tokenizer, callbacks=[Tell(tell)],
                          train_dataset=as_dataset(rows), data_collator=DataCollatorForSeq2Seq(tokenizer))

    fit(model, trainer, spec.batch_size, lambda: last_checkpoint(folder), tell)
    return model


def model_arguments(folder: Path, length: int, spec: TrainSpec, settings: LocalSettings) -> dict[str, Any]:
    """For FastLanguageModel.from_pretrained. length: tokens of the longest row."""
    bits = settings.bits or 4
    return {"model_name": str(folder), "max_seq_length": length, "dtype": None, "load_in_4bit": bits == 4,
            "load_in_8bit": bits == 8, "load_in_16bit": bits == 16, "full_finetuning": False,
            "use_gradient_checkpointing": "unsloth", "trust_remote_code": False,
            "use_exact_model_name": True,  # the model that was checked, not a quantised one of that name
            "random_state": spec.seed}


def adapter_arguments(spec: TrainSpec, settings: LocalSettings, experts: bool = False) -> dict[str, Any]:
    """For FastLanguageModel.get_peft_model. experts: the model is a mixture of them, and they stay as they
    are: Unsloth adapts them as one tensor, which nothing else here can open. Raises UsageError where they are
    targets."""
    targets = spec.lora.targets or (ATTENTION if experts else LAYERS)
    if experts and not set(targets).isdisjoint(OF_EXPERTS):
        raise UsageError(Problem("an adapter on a mixture's experts is not possible", value=targets,
                                 field="train.lora.targets",
                                 hint=f"leave it out, or take of {', '.join(ATTENTION)}"))
    return {"r": spec.lora.rank, "lora_alpha": spec.lora.alpha, "lora_dropout": spec.lora.dropout,
            "target_modules": targets, "bias": "none",
            "use_gradient_checkpointing": "unsloth", "use_rslora": settings.rslora, "random_state": spec.seed}


def trainer_arguments(spec: TrainSpec, rows_at_once: int) -> dict[str, Any]:
    """For SFTConfig, beside those of every engine."""
    return {"per_device_train_batch_size": rows_at_once,
            "gradient_accumulation_steps": spec.batch_size // rows_at_once,
            "packing": False, "padding_free": False}


def fitting_rows(batch_size: int, at_most: int = ROWS_AT_ONCE) -> int:
    """Rows of a micro-batch: the most up to `at_most` that divide the batch."""
    return next(rows for rows in range(min(at_most, batch_size), 0, -1) if batch_size % rows == 0)


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows as TRL and Unsloth take them without tokenising anew; only the answer is learnt."""
    from datasets import Dataset

    return Dataset.from_dict({
        "input_ids": [row.ids for row in rows], "attention_mask": [[1] * len(row.ids) for row in rows],
        "labels": [[-100] * (len(row.ids) - len(row.completion)) + row.completion for row in rows]})


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer with a token to pad with. That it may be the end token does no harm: labels are padded
    with -100, so the end token of an answer is always learnt."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def fit(model: torch.nn.Module, trainer: Callable[[int], Any], batch_size: int,
        resume: Callable[[], Path | None], tell: Callable[..., None]) -> None:
    """Train `model` with what `trainer` makes for a number of rows at once; with fewer, from the last
    checkpoint or from the beginning, where the memory is too small."""
    import torch

    from distillctl_local.fit import is_last, make_no_step

    new = [(weight, weight.detach().clone()) for weight in model.parameters() if weight.requires_grad]
    rows = fitting_rows(batch_size)
    while True:
        checkpoint = resume()
        try:
            made = trainer(rows)
            if checkpoint and is_last(checkpoint):
                make_no_step(made.args)
            made.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        with torch.no_grad():  # the steps before a checkpoint are made again
            for weight, value in new:
                weight.copy_(value)
        torch.cuda.empty_cache()
        rows = fitting_rows(batch_size, rows // 2)
        tell(f"out of GPU memory: {rows} rows at once from here on, the batch stays the same",
             level="warning")
