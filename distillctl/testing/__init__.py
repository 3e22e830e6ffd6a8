"""What tests of distillctl and of its backends stand on: the conformance suites and the crash points.

The suites need pytest; it is imported when one of them is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillctl.testing.contract import BackendContract, HostedBackendContract, ProviderControl

__all__ = ["BackendContract", "HostedBackendContract", "ProviderControl"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from distillctl.testing import contract

        return getattr(contract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
