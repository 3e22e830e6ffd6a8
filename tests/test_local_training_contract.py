"""The local backend passes the suite that every backend passes, on a tiny student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from distillctl_local.backend import LocalBackend
from support.tiny_models import save_tiny_model

from distillctl.recipe.models import TrainSpec
from distillctl.testing import BackendContract


class TestLocal(BackendContract):
    backend = LocalBackend
    train = TrainSpec(max_steps=2, batch_size=4, learning_rate=1e-2)
    patience_s = 250.0

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.model = str(save_tiny_model(tmp_path_factory.mktemp("tiny")))

    @classmethod
    def settings(cls, provider: Any) -> Mapping[str, Any]:
        return {"threads": 1}
