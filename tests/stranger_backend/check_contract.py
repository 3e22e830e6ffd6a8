"""The stranger's own test file: all of it. Run where the package is installed."""

from nearest_backend import NearestBackend

from distillctl.testing import BackendContract


class TestNearest(BackendContract):
    backend = NearestBackend
