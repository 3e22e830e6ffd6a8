"""The linear backend passes the suite that every backend passes."""

from distillctl_linear.backend import LinearBackend

from distillctl.testing import BackendContract


class TestLinear(BackendContract):
    backend = LinearBackend
