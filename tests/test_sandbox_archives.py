"""A wheel that a rehearsed job brings is unpacked member by member, or refused before a byte is written."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from distillctl.sandbox import hf_jobs_container
from distillctl.sandbox.hf_jobs_container import Unrunnable, _unpacked


def packed(path: Path, *members: tuple[str, bytes], mode: int = 0) -> Path:
    """An archive with these members, whatever their names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


def refused(wheel: Path, scratch: Path, reason: str) -> None:
    scratch.mkdir()
    with pytest.raises(Unrunnable, match=reason):
        _unpacked(wheel, scratch)
    assert [path for path in scratch.rglob("*") if path.is_file()] == []
    assert not (scratch.parent / "escaped").exists()


def test_a_wheel_is_unpacked_with_its_folders(tmp_path: Path) -> None:
    wheel = packed(tmp_path / "ours.whl", ("ours/__init__.py", b"x = 1"), ("ours/page.css", b"p {}"))
    folder = _unpacked(wheel, tmp_path / "scratch")
    assert (folder / "ours" / "__init__.py").read_bytes() == b"x = 1"
    assert (folder / "ours" / "page.css").read_bytes() == b"p {}"


@pytest.mark.parametrize("name", ["../escaped", "a/../../../escaped", "/tmp/escaped"])
def test_a_member_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    wheel = packed(tmp_path / "ours.whl", ("ours.py", b""), (name, b"x"))
    refused(wheel, tmp_path / "scratch", "leaves its folder")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO], ids=["link", "device", "pipe"])
def test_a_member_that_is_no_plain_file(tmp_path: Path, kind: int) -> None:
    wheel = packed(tmp_path / "ours.whl", ("ours.py", b"/etc/passwd"), mode=kind | 0o777)
    refused(wheel, tmp_path / "scratch", "no plain file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("ours.py", "ours.py"), ("ours.py", "Ours.py")])
def test_two_members_for_one_place(tmp_path: Path, names: tuple[str, str]) -> None:
    wheel = packed(tmp_path / "ours.whl", *((name, b"") for name in names))
    refused(wheel, tmp_path / "scratch", "two members")


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_jobs_container, "_MOST_UNPACKED", 1 << 20)
    wheel = packed(tmp_path / "ours.whl", ("ours.py", bytes(2 << 20)))
    assert wheel.stat().st_size < 10_000
    refused(wheel, tmp_path / "scratch", "more than")


def test_members_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_jobs_container, "_MOST_MEMBERS", 3)
    wheel = packed(tmp_path / "ours.whl", *((f"{number}/", b"") for number in range(4)))
    refused(wheel, tmp_path / "scratch", "more than")


@pytest.mark.parametrize("announced", [10, 1 << 40], ids=["too little", "too much"])
def test_a_member_that_lies_about_its_size_is_not_written_beyond_it(tmp_path: Path, announced: int) -> None:
    wheel = packed(tmp_path / "ours.whl", ("ours.py", bytes(1 << 20)))
    true, false = (1 << 20).to_bytes(4, "little"), min(announced, 2**32 - 2).to_bytes(4, "little")
    wheel.write_bytes(wheel.read_bytes().replace(true, false))
    with pytest.raises(Unrunnable, match="Failed to unzip"):
        _unpacked(wheel, tmp_path / "scratch")
    assert sum(path.stat().st_size for path in (tmp_path / "scratch").rglob("*") if path.is_file()) <= 10


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not an archive"])
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "ours.whl").write_bytes(data)
    refused(tmp_path / "ours.whl", tmp_path / "scratch", "Failed to unzip")
