"""A hosted backend passes the hosted suite over real HTTP: the suite's own test."""

import pytest
from support.entry_points import register
from support.loopback import AtLoopback, LoopbackBackend

from distillctl.testing import HostedBackendContract


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(register(tmp_path_factory.mktemp("site"), "loopback-backend",
                                       loopback="support.loopback:LoopbackBackend"))
        yield


class TestLoopback(AtLoopback, HostedBackendContract):
    backend = LoopbackBackend
