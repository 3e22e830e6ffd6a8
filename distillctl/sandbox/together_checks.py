"""What Together refuses in a request, and what it offers: models with their limits, hardware, prices.

Fields and limits: the request and response types of its SDK, version 3.1.1. Its words are only partly
known, and the shape of its errors is that of its chat API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from distillctl.sandbox.wire import Refused
from distillctl.types import JSON

CATALOGUE_PROJECT = "proj_together"
USD_PER_TOKEN = 0.48e-6  # of LoRA on a model of up to 16 billion parameters
CREDIT_USD = 100.0
MOST_FILE_BYTES = 50.1 * 2**30
HARDWARE = {"1x_nvidia_h100_80gb_sxm": ("H100", 1, 80, 399), "2x_nvidia_h100_80gb_sxm": ("H100", 2, 80, 798)}
"""Id to GPU, count, GiB of each, US cents an hour."""

_CREATE = {
    "training_file", "validation_file", "packing", "model", "n_epochs", "learning_rate", "lr_scheduler",
    "warmup_ratio", "max_grad_norm", "weight_decay", "n_checkpoints", "n_evals", "max_seq_length",
    "batch_size", "gradient_accumulation_steps", "suffix", "wandb_key", "wandb_base_url",
    "wandb_project_name", "wandb_name", "wandb_entity", "random_seed", "early_stopping_enabled",
    "early_stopping_patience", "early_stopping_min_delta", "early_stopping_warmup_evals", "training_type",
    "training_method", "from_checkpoint", "multimodal_params", "from_hf_model", "hf_model_revision",
    "hf_api_token", "hf_output_repo_name", "train_on_inputs"}
_CHAT = {
    "messages", "model", "chat_template_kwargs", "compliance", "context_length_exceeded_behavior", "echo",
    "frequency_penalty", "function_call", "logit_bias", "logprobs", "max_tokens", "min_p", "n",
    "presence_penalty", "reasoning", "reasoning_effort", "repetition_penalty", "response_format",
    "safety_model", "seed", "stop", "stream", "temperature", "tool_choice", "tools", "top_k", "top_p"}
_DEPLOYMENT = {
    "autoscaling", "name", "config", "configId", "inactiveTimeout", "maxConcurrentRequestsPerReplica",
    "model", "modelId", "modelRevisionId", "placement"}
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Base:
    """A base model of the catalogue."""

    name: str
    max_seq_length: int = 32768
    max_rank: int = 64
    max_batch: int = 32
    max_epochs: int = 20
    full: bool = False  # whether every weight may be trained

    @property
    def id(self) -> str:
        return "ml_" + re.sub(r"[^a-z0-9]", "", self.name.lower())

    @property
    def resource(self) -> str:
        return f"projects/{CATALOGUE_PROJECT}/models/{self.id}"

    @property
    def config(self) -> str:
        return f"cr_{self.id.removeprefix('ml_')}"

    @property
    def config_resource(self) -> str:
        return f"projects/{CATALOGUE_PROJECT}/configs/{self.config}"

    def limits(self) -> dict[str, JSON]:
        return {
            "model_name": self.name, "max_num_epochs": self.max_epochs, "max_num_evals": 100,
            "max_num_checkpoints": 20, "min_learning_rate": 1e-8, "max_learning_rate": 0.01,
            "min_max_seq_length": 256, "max_seq_length_sft": self.max_seq_length,
            "max_seq_length_dpo": self.max_seq_length, "default_gradient_accumulation_steps": 1,
            "merge_output_lora": True, "supports_full_training": self.full, "supports_reasoning": True,
            "supports_tools": True, "supports_vision": False,
            "full_training": {"min_batch_size": 8, "max_batch_size": self.max_batch // 2,
                              "max_batch_size_dpo": self.max_batch // 4} if self.full else None,
            "lora_training": {
                "default_rank": 64, "max_rank": self.max_rank, "min_batch_size": 8,
                "max_batch_size": self.max_batch, "max_batch_size_dpo": self.max_batch // 2,
                "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                   "down_proj"]}}


BASES = {base.name: base for base in (
    Base("Qwen/Qwen3-0.6B", full=True), Base("Qwen/Qwen3-1.7B"),
    Base("google/gemma-3-1b-it", max_seq_length=16384))}


def iso(at: float | None) -> str | None:
    """A moment as the service writes it."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def bad(message: str, param: str | None = None, status: int = 400) -> Refused:
    return Refused(status, message, param=param, type="invalid_request_error")


def only(asked: Mapping[str, JSON], known: set[str]) -> None:
    if unknown := sorted(set(asked) - known):
        raise bad(f"Unknown field in the request: {unknown[0]}", unknown[0])


def base_named(name: JSON) -> Base:
    if not isinstance(name, str) or name not in BASES:
        raise bad(f"Model {name} is not supported for fine-tuning.", "model")
    return BASES[name]


def check_create(asked: Mapping[str, JSON]) -> Base:
    """The base model of a create request that may be accepted, its files aside."""
    only(asked, _CREATE)
    base = base_named(asked.get("model"))
    limits = base.limits()
    _number(asked, "n_epochs", 1, limits["max_num_epochs"], whole=True)
    _number(asked, "learning_rate", limits["min_learning_rate"], limits["max_learning_rate"])
    _number(asked, "warmup_ratio", 0, 1)
    _number(asked, "weight_decay", 0, 1e9)
    _number(asked, "max_grad_norm", 0, 1e9)
    _number(asked, "n_checkpoints", 1, limits["max_num_checkpoints"], whole=True)
    _number(asked, "n_evals", 0, limits["max_num_evals"], whole=True)
    _number(asked, "random_seed", 0, 2**31 - 1, whole=True)
    _number(asked, "max_seq_length", limits["min_max_seq_length"], limits["max_seq_length_sft"], whole=True)
    check_type(asked.get("training_type"), limits)
    if asked.get("batch_size") != "max":
        own = limits["full_training" if is_full(asked) else "lora_training"]
        _number(asked, "batch_size", own["min_batch_size"], own["max_batch_size"], whole=True)
    suffix = asked.get("suffix")
    if suffix is not None and (not isinstance(suffix, str) or not re.fullmatch(r"[\w.-]{1,40}", suffix)):
        raise bad("suffix must be at most 40 characters: letters, digits, '-', '_' and '.'", "suffix")
    method = asked.get("training_method")
    if not isinstance(method, dict) or method.get("method") != "sft":
        raise bad("This rehearsal trains with training_method sft alone.", "training_method")
    if method.get("train_on_inputs") not in (True, False, "auto"):
        raise bad("train_on_inputs must be a boolean or 'auto'", "training_method.train_on_inputs")
    _check_schedule(asked.get("lr_scheduler"))
    for name in ("from_checkpoint", "from_hf_model", "validation_file"):
        if asked.get(name):
            raise bad(f"This rehearsal does not know {name}.", name)
    return base


def is_full(asked: Mapping[str, JSON]) -> bool:
    """Whether a checked request trains every weight."""
    return (asked.get("training_type") or {}).get("type") == "Full"


def check_type(given: JSON, limits: Mapping[str, JSON]) -> None:
    """`training_type` of a create or an estimate; without it, the service takes LoRA of the default rank."""
    if given is None:
        return
    if not isinstance(given, dict) or given.get("type") not in ("Lora", "Full"):
        raise bad("training_type.type must be Lora or Full", "training_type")
    if given["type"] == "Full":
        only(given, {"type"})
        if not limits["supports_full_training"]:
            raise bad("Full training is not supported for this model.", "training_type")
        return
    only(given, {"type", "lora_r", "lora_alpha", "lora_dropout", "lora_trainable_modules"})
    lora = limits["lora_training"]
    _number(given, "lora_r", 1, lora["max_rank"], whole=True)
    _number(given, "lora_alpha", 1, 1e9, whole=True)
    _number(given, "lora_dropout", 0, 0.999999)
    modules = given.get("lora_trainable_modules", "all-linear")
    if modules != "all-linear" and not set(str(modules).split(",")) <= set(lora["target_modules"]):
        raise bad(f"lora_trainable_modules must be 'all-linear' or some of "
                  f"{','.join(lora['target_modules'])}, got {modules}", "lora_trainable_modules")


def _check_schedule(given: JSON) -> None:
    if given is None:
        return
    if not isinstance(given, dict) or given.get("lr_scheduler_type") not in ("linear", "cosine"):
        raise bad("lr_scheduler_type must be linear or cosine", "lr_scheduler")
    arguments = given.get("lr_scheduler_args") or {}
    only(arguments, {"min_lr_ratio", "num_cycles"} if given["lr_scheduler_type"] == "cosine"
         else {"min_lr_ratio"})
    _number(arguments, "min_lr_ratio", 0, 1)


def check_chat(asked: Mapping[str, JSON]) -> None:
    only(asked, _CHAT)
    if not isinstance(asked.get("model"), str):
        raise bad("model is required", "model")
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages must not be empty", "messages")
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "user", "assistant", "tool") or not isinstance(message.get("content"), str):
            raise bad(f"invalid message: role {role!r}", "messages")
    if asked.get("stream"):
        raise bad("This rehearsal does not stream.", "stream")
    top = asked.get("logprobs")
    if top is not None and (type(top) is not int or not 0 <= top <= 20):
        raise bad(f"logprobs must be an integer from 0 to 20, got {top!r}", "logprobs")
    if "max_tokens" in asked and (type(asked["max_tokens"]) is not int or asked["max_tokens"] < 1):
        raise bad("max_tokens must be a positive integer", "max_tokens")
    wanted = asked.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        described = wanted.get("json_schema")
        if not isinstance(described, dict) or not isinstance(described.get("name"), str):
            raise bad("response_format.json_schema.name is required", "response_format")


def check_name(asked: Mapping[str, JSON], slug: str) -> str:
    """The bare name of an endpoint or a deployment."""
    name = asked.get("name")
    bare = name.removeprefix(f"{slug}/") if isinstance(name, str) else ""
    if not _NAME.fullmatch(bare):
        raise bad(f"name must be a DNS label of at most 63 characters, got {name!r}", "name")
    return bare


def check_deployment(asked: Mapping[str, JSON]) -> tuple[int, int]:
    """Fewest and most replicas of a deployment that is to be created."""
    only(asked, _DEPLOYMENT)
    check_idle(asked)
    return replicas(asked.get("autoscaling"), None)


def check_idle(asked: Mapping[str, JSON]) -> None:
    idle = asked.get("inactiveTimeout", 0)
    if type(idle) is not int or not (idle == 0 or 30 <= idle <= 1440):
        raise bad(f"inactiveTimeout must be 0 or from 30 to 1440 minutes, got {idle!r}", "inactiveTimeout")


def replicas(autoscaling: JSON, now: tuple[int, int] | None) -> tuple[int, int]:
    """Fewest and most replicas that an `autoscaling` asks for; now: those of before an update."""
    if not isinstance(autoscaling, dict):
        raise bad("autoscaling is required", "autoscaling")
    least = autoscaling.get("minReplicas", now[0] if now else None)
    most = autoscaling.get("maxReplicas", now[1] if now else least)
    if type(least) is not int or type(most) is not int or not 0 <= least <= most <= 8:
        raise bad(f"minReplicas and maxReplicas must be from 0 to 8, got {least!r} and {most!r}",
                  "autoscaling")
    if least == 0 and most > 0:
        raise bad("minReplicas may be 0 only together with maxReplicas", "autoscaling")
    return least, most


def _number(asked: Mapping[str, JSON], name: str, least: float, most: float, whole: bool = False,
            ) -> None:
    value = asked.get(name)
    if value is None:
        return
    kinds = int if whole else int | float
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
        raise bad(f"{name} must be {'an integer' if whole else 'a number'} from {least:g} to {most:g}, got "
                  f"{value!r}", name)
