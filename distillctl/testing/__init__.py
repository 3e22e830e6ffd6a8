"""What tests of distillctl and of its backends stand on: the conformance suites and the crash points.

The suites need pytest; it is imported when one of them is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillctl.testing.contract import BackendContract
    from distillctl.testing.hosted import HostedBackendContract, ProviderControl

__all__ = ["BackendContract", "HostedBackendContract", "ProviderControl"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite("distillctl.testing.contract", "distillctl.testing.hosted",
                                   "distillctl.testing.lab")
    if name == "BackendContract":
        from distillctl.testing.contract import BackendContract

        return BackendContract
    from distillctl.testing import hosted

    return getattr(hosted, name)
