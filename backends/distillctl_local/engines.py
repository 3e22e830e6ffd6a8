"""Which of the two trainers a job gets: ours on plain transformers and PEFT, or Unsloth's. Needs no torch."""

from __future__ import annotations

from importlib.util import find_spec

from distillctl.errors import Problem
from distillctl.recipe.models import TrainSpec
from distillctl_local.hardware import has_gpu
from distillctl_local.settings import LocalSettings

SHARING_IS_FASTER = 2.0  # ratio from which sharing beats Unsloth's kernels, which are 1.1 to 2 times as fast
INSTALL = ("pip install 'distillctl[unsloth]', in an environment of its own: Unsloth needs older "
           "transformers and TRL than the local extra has")


def choose_engine(settings: LocalSettings, train: TrainSpec, ratio: float | None) -> tuple[str, str]:
    """The engine, `peft` or `unsloth`, and why.

    ratio: tokens that a step computes without sharing the prompts' beginning for each that it computes with
    it; None where it is not known.
    """
    if settings.engine != "auto":
        return settings.engine, "as the recipe says"
    if not _on_gpu(settings):
        return "peft", "there is no GPU, which Unsloth needs"
    if train.lora is None:
        return "peft", "with Unsloth we train adapters alone"
    if find_spec("unsloth") is None:
        return "peft", "Unsloth is not installed"
    if why := _only_peft(settings):
        return "peft", f"Unsloth does not know {why}"
    if ratio is not None and ratio >= SHARING_IS_FASTER:
        return "peft", f"sharing what the prompts begin with saves {ratio:.1f}×, more than Unsloth's kernels"
    return "unsloth", "a GPU is there, and the prompts share too little for shared-prefix training"


def why_not_unsloth(settings: LocalSettings) -> list[Problem]:
    """What stands against `engine: unsloth` here; empty where it can run."""
    problems = []
    if not _on_gpu(settings):
        problems.append(Problem(
            "Unsloth trains on an NVIDIA GPU, and none is to be used here", field="backends.local.engine",
            value="unsloth", hint="take engine: peft, which trains on this processor, or backend: hf-jobs"))
    if find_spec("unsloth") is None:
        problems.append(Problem("Unsloth is not installed", field="backends.local.engine", value="unsloth",
                                hint=INSTALL))
    if why := _only_peft(settings):
        problems.append(Problem(f"Unsloth does not know {why}", field="backends.local.engine",
                                value="unsloth", hint="take engine: peft, or leave that setting out"))
    return problems


def _on_gpu(settings: LocalSettings) -> bool:
    return settings.device != "cpu" and has_gpu()


def _only_peft(settings: LocalSettings) -> str | None:
    """The setting that only our own trainer knows."""
    known = {f"shared_prefix: {settings.shared_prefix}": settings.shared_prefix in ("on", "frozen"),
             "learn: choice": settings.learn == "choice",
             "keep: best": settings.keep == "best", "patience": settings.patience is not None,
             "lora_plus": settings.lora_plus is not None, "layers": settings.layers is not None,
             "precision: fp32": settings.precision == "fp32", "devices": settings.devices > 1}
    return next((name for name, wanted in known.items() if wanted), None)
