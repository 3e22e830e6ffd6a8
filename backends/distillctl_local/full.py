"""Full fine-tuning, `train.lora: null`: what does not go with it. Needs no torch."""

from __future__ import annotations

from distillctl.errors import Problem
from distillctl.recipe.models import TrainSpec
from distillctl_local.settings import LocalSettings


def problems(train: TrainSpec, settings: LocalSettings, block: str = "backends.local") -> list[Problem]:
    """Settings that are an adapter's alone, all of them; none where an adapter is trained. block: where the
    settings stand in the recipe."""
    if train.lora is not None:
        return []
    found = {
        "shared_prefix": (settings.shared_prefix == "frozen", "leaves the prefix to an untrained base"),
        "layers": (settings.layers is not None, "says where an adapter sits"),
        "rslora": (settings.rslora, "scales an adapter"),
        "lora_plus": (settings.lora_plus is not None, "is about the two halves of an adapter"),
        "precision": (settings.precision == "bf16", "rounds away what every weight learns in small steps"),
        "bits": (settings.bits in (4, 8), "stores a base that does not change, and every weight is trained"),
        "engine": (settings.engine == "unsloth", "trains adapters here")}
    return [Problem(f"{why}: it does not go with `train.lora: null`", field=f"{block}.{name}",
                    value=getattr(settings, name), hint="delete the line, or give train.lora a rank")
            for name, (wanted, why) in found.items() if wanted]
