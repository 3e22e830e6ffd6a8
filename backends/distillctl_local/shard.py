"""`shard: true`: every GPU holds a part of the frozen base, for a student that is too large for one (FSDP).

torch's `fully_shard` (FSDP2) divides the weights of each decoder layer among the ranks and brings a layer's
together while it computes. Embeddings, the output head, the last norm and the adapter stay whole on every
rank, so gradients are added up as without sharding. All ranks must be at a layer to bring it together: they
make equally many passes, in the same order (`division.in_step`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillctl.errors import Problem
from distillctl.recipe.models import TrainSpec
from distillctl_local.settings import LocalSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from distillctl_local.ranks import Ranks


def problems(settings: LocalSettings, train: TrainSpec) -> list[Problem]:
    """What does not go with a divided base."""
    if not settings.shard:
        return []
    found = {
        "there is one device, and nothing to divide among": settings.devices == 1,
        "every weight is trained (`train.lora: null`), and only a frozen base is divided": train.lora is None,
        "quantised weights are not divided": settings.bits in (4, 8),
        "a prefix that the base alone computes (`shared_prefix: frozen`) is not divided":
            settings.shared_prefix == "frozen",
        "layers without an adapter (`layers`) are not divided": settings.layers is not None,
        "`keep: best` and `patience` answer the dev split on each device, and none holds the model":
            settings.watches}
    return [Problem(why, field="backends.local.shard", value=True, hint="leave one of the two out")
            for why, here in found.items() if here]


def shard(model: PreTrainedModel, device: str, ranks: Ranks) -> None:
    """Divide a model in host memory, its adapter on it already, among the ranks, and move it to `device`; in
    place, and a layer at a time: no device ever holds the whole model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from distillctl_local.readout import backbone

    mesh = init_device_mesh(device, (ranks.count,))
    for layer in backbone(model).layers:
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        # Each layer is a root of its own, which unasked keeps its weights until the backward pass.
        fully_shard(layer, mesh=mesh, ignored_params=trained, reshard_after_forward=True)
    for module in model.modules():  # what was not divided
        for parameter in module.parameters(recurse=False):
            if parameter.device.type != device:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
