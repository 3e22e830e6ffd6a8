"""What a flavour is and costs: https://huggingface.co/docs/hub/jobs-pricing"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distillctl_hf_jobs.client import Service

if TYPE_CHECKING:
    from huggingface_hub import JobHardwareInfo


@dataclass(frozen=True)
class Flavor:
    """One kind of machine. usd_per_minute: None where it is not billed by the minute."""

    name: str
    text: str
    usd_per_minute: float | None

    def cost(self, seconds: float) -> float | None:
        """What a job of so many seconds costs; a begun minute is a minute."""
        if self.usd_per_minute is None:
            return None
        return max(1, math.ceil(seconds / 60)) * self.usd_per_minute


def flavors(service: Service) -> dict[str, Flavor]:
    """Every flavour by name. Raises Unreachable, BackendError."""
    listed = service.read(service.api.list_jobs_hardware) or []
    return {row.name: _flavor(row) for row in listed if isinstance(row.name, str)}


def listing(found: Sequence[Flavor]) -> str:
    """The flavours, cheapest first."""
    by_price = sorted(found, key=lambda flavor: flavor.usd_per_minute or math.inf)
    return ", ".join(f"{flavor.name} (${flavor.usd_per_minute * 60:.2f}/h)" if flavor.usd_per_minute
                     else flavor.name for flavor in by_price)


def _flavor(row: JobHardwareInfo) -> Flavor:
    gpu = row.accelerator
    text = f"{gpu.quantity} × {gpu.model}, {gpu.vram}" if gpu else f"{row.cpu}, no GPU"
    cost = row.unit_cost_usd
    billed = row.unit_label == "minute" and isinstance(cost, int | float) and cost >= 0
    return Flavor(row.name, text, float(cost) if billed else None)
