"""Logs of real calls, brought in as examples, a recording and a recipe. A file per family of formats."""

from __future__ import annotations

from distillctl.importing.build import Imported, import_log

__all__ = ["Imported", "import_log"]
