"""The recipe's `backends.local` block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distillctl.recipe.models import Strict


class LocalSettings(Strict):
    """How a student is trained on this machine."""

    engine: Literal["auto", "peft", "unsloth"] = "auto"
    """peft: transformers, PEFT and TRL with shared-prefix training. unsloth: Unsloth's QLoRA on an NVIDIA
    GPU (needs its own extra). auto: unsloth where a GPU and Unsloth are there and the prompts share little,
    else peft; `plan` says which and why."""
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Another student than the recipe's, for this backend."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What is computed on. auto: an NVIDIA GPU where there is one, else the processor."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that train together, or processes on a processor, which gain nothing there. A batch stays one
    optimiser step: each computes its share of the rows."""
    shard: bool = False
    """Divide the frozen base among the devices (FSDP), for a student that is too large for one; slower where
    it is not. Each process loads it into the host's memory first."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the frozen base model; adapters are trained in fp32. auto: bf16 where the hardware computes in it,
    else fp32. With `train.lora: null`, and for what it trained, always fp32."""
    bits: Literal[4, 8, 16] | None = None
    """Of the frozen base model's weights: 4 (NF4) and 8 through bitsandbytes on an NVIDIA GPU. null: 4 with
    Unsloth, else 16 or 32, as `precision` says."""
    shared_prefix: Literal["auto", "on", "off", "frozen"] = "auto"
    """Compute what all prompts begin with once per step. auto: where it is exact and pays. frozen: the base
    alone computes it, once for all; another student, which needs the base beside its adapter for ever."""
    learn: Literal["auto", "choice", "tokens"] = "auto"
    """choice: which label, among the labels; tokens: every token of the answer among all tokens. auto: choice
    for a classification, which learns in half as many passes."""
    layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Adapt only so many of the uppermost layers. Those below stay the base's, and what they make of a row is
    computed once instead of in every epoch. None: all layers."""
    rslora: bool = False
    """Scale the adapter by alpha / √rank instead of alpha / rank (Kalajdzievski 2023, arXiv 2312.03732)."""
    lora_plus: Annotated[float, Field(ge=1, le=100)] | None = None
    """Learning rate of the adapter's B matrices over that of A (LoRA+, Hayou et al. 2024, arXiv 2402.12354);
    None: the same."""
    keep: Literal["last", "best"] = "last"
    """best: of all epochs the one that answers the dev split best, by the task's own metric."""
    patience: Annotated[int, Field(ge=1, le=100)] | None = None
    """Stop after so many epochs in a row that are no better on the dev split, and keep the best; None: train
    to the end."""
    micro_tokens: Annotated[int, Field(ge=128, le=1_000_000)] = 8192
    """Most tokens that are computed at once; memory grows with it, the result does not depend on it."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=100_000)] = 25
    """A checkpoint every so many optimiser steps; a killed trainer goes on from the last one."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processor threads, of all devices together; None: one per core."""
    restarts: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a trainer that died is started again."""

    report_to: list[Literal["mlflow", "tensorboard", "wandb"]] = Field(default=[], max_length=3)
    """Who else is told of the training curve, through transformers' own callbacks; nobody unless named."""

    @property
    def watches(self) -> bool:
        """Whether the dev split is answered after every epoch."""
        return self.keep == "best" or self.patience is not None
