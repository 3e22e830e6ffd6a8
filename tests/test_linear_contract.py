"""The linear backend passes the suite that every backend passes."""

from distillctl.testing import BackendContract
from distillctl_linear.backend import LinearBackend


class TestLinear(BackendContract):
    backend = LinearBackend
