"""`devices: N`: whether there are so many, and what is said of it before training. Needs no torch."""

from __future__ import annotations

from distillctl.errors import Problem
from distillctl.recipe.models import TrainSpec
from distillctl_local.hardware import cores, gpus, has_gpu
from distillctl_local.settings import LocalSettings

_FIELD = "backends.local.devices"


def on_gpu(settings: LocalSettings) -> bool:
    """Whether the trainer will compute on NVIDIA GPUs, as far as can be seen without torch."""
    return settings.device == "cuda" or (settings.device == "auto" and has_gpu())


def problems(settings: LocalSettings) -> list[Problem]:
    """More devices than there are, or none of the kind that was asked for."""
    if settings.device == "cuda" and not gpus():
        return [Problem("there is no CUDA device", field="backends.local.device", value="cuda",
                        hint="set it to auto or cpu")]
    if settings.devices == 1:
        return []
    there, what = (gpus(), "GPU") if on_gpu(settings) else (cores(), "processor core")
    if settings.devices <= there:
        return []
    return [Problem(f"there {'is' if there == 1 else 'are'} {there} {what}{'' if there == 1 else 's'} here",
                    field=_FIELD, value=settings.devices,
                    hint=f"give {there} or fewer, or leave it out" if there else "leave it out")]


def warnings(settings: LocalSettings, train: TrainSpec) -> list[str]:
    """What is allowed and gains nothing."""
    if settings.devices == 1:
        return []
    found = []
    if not on_gpu(settings):
        found.append(f"{_FIELD} {settings.devices}: processes on one processor share its cores, and each "
                     "holds the model; one process with all threads is as fast")
    if train.batch_size < settings.devices:
        found.append(f"{_FIELD} {settings.devices}: a batch of {train.batch_size} rows leaves some of them "
                     "nothing to do")
    return found


def in_words(settings: LocalSettings) -> str:
    """What trains: "the GPU", "4 GPUs", "the processor"."""
    if settings.devices == 1:
        return "the GPU" if on_gpu(settings) else "the processor"
    many = (f"{settings.devices} GPUs" if on_gpu(settings)
            else f"the processor in {settings.devices} processes")
    return f"{many}, the base divided among them" if settings.shard else many
