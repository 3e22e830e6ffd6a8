"""Registers a backend as an installed package does: a `.dist-info` folder on the path."""

from __future__ import annotations

from pathlib import Path


def register(folder: Path, distribution: str, version: str = "1.0", extras: tuple[str, ...] = (),
             **backends: str) -> Path:
    """Write the metadata of a distribution with these backends (name="module:Class"); its folder."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("".join([
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
        *(f"Provides-Extra: {extra}\n" for extra in extras)]))
    (info / "entry_points.txt").write_text("[distillctl.backends]\n" + "".join(
        f"{name} = {value}\n" for name, value in backends.items()))
    return folder
