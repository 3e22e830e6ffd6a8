"""What a trainer leaves: an adapter or a whole model, as the files that `predictor` opens.

An adapter takes the tokenizer from its base. A whole model depends on nothing: the base's own tokenizer files
lie beside it, byte for byte. Its weights are stored in fp32, as they were trained, and answer in fp32. The
base's lie on bf16's grid, and much of what full fine-tuning adds to one is less than half a step of it:
rounded to bf16, such a weight would be the base's again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distillctl.store.files import write_json
from distillctl.types import JSON
from distillctl_local.models import HUB_ID, model_folder
from distillctl_local.safety import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from distillctl_local.encode import Encoder

ADAPTER_FILES = (CONFIG, WEIGHTS)
MODEL_CONFIG, MODEL_WEIGHTS = "config.json", "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
MODEL_FILES = (MODEL_CONFIG, MODEL_WEIGHTS, "generation_config.json", *TOKENIZER_FILES)
_ONE_FILE = "1000GB"  # of weights: more than a file of them can have


def kind_of(names: Iterable[str]) -> Literal["adapter", "model"] | None:
    """What a student with files of these names is; None where they are neither's."""
    found = set(names)
    if found == set(ADAPTER_FILES):
        return "adapter"
    return "model" if {MODEL_CONFIG, MODEL_WEIGHTS} <= found <= set(MODEL_FILES) else None


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model that computes: an adapted one's own, its layers with their adapters."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def save_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """What is trained, into `folder`: the adapter, or all weights in one file."""
    model.save_pretrained(folder, max_shard_size=_ONE_FILE)


def load_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Give the model what `save_weights` wrote."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    else:  # not strict: a tied weight is stored once
        model.load_state_dict(load_file(folder / MODEL_WEIGHTS), strict=False)


def write_adapter(model: PeftModel, job: Mapping[str, JSON], folder: Path) -> None:
    """The adapter as PEFT reads it, without paths of this machine and the same bytes for the same run."""
    save_weights(model, folder)
    for path in folder.iterdir():
        if path.name not in ADAPTER_FILES:  # a model card, a tokenizer
            path.unlink()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not HUB_ID.fullmatch(config["base_model_name_or_path"]):
        config["base_model_name_or_path"] = Path(job["model"]).name
    config["revision"] = job["revision"]
    config["auto_mapping"] = None  # Unsloth names the module of its classes there; no student names code
    if isinstance(config["target_modules"], list):  # a set until it was written
        config["target_modules"].sort()
    write_json(folder / CONFIG, config)


def write_model(model: PreTrainedModel, encoder: Encoder, job: Mapping[str, JSON], folder: Path) -> None:
    """The whole model as transformers reads it, with the same bytes for the same run."""
    answer_as_trained(model, encoder)
    save_weights(model, folder)
    config = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # it may be a path of this machine
    write_json(folder / MODEL_CONFIG, config)
    base = model_folder(job["model"], job["revision"])
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def answer_as_trained(model: PreTrainedModel, encoder: Encoder) -> None:
    """Let what other programs do with the model by default be what the student does: the likeliest token, up
    to the token that ends an answer. Some servers never stop without it. Of the base's own settings nothing
    stays that could make it another token, as penalties for repeating one."""
    from transformers import GenerationConfig

    stops, base = encoder.stops, model.generation_config
    kept = ("bos_token_id", "pad_token_id", "max_length", "max_new_tokens")
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=stops if len(stops) > 1 else stops[0],
        **{name: getattr(base, name) for name in kept})
