"""A student that Hugging Face's sandbox delivers at once, where a test is not about its training."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillctl_hf_jobs.backend import HfJobsBackend
from distillctl_hf_jobs.settings import HfJobsSettings
from support.backends import to_end

from distillctl.backend import BackendEnv
from distillctl.jobs import new_token
from distillctl.sandbox import part
from distillctl.sandbox.hf_jobs import HfJobsPart
from distillctl.sandbox.hf_jobs_hub import HubRoutes
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.wire import fingerprint
from distillctl.store.files import digest_file

REPO = "distillctl-data"
KEY = "hf_canary_0123456789"
USER = HubRoutes.user(fingerprint(KEY))


def weights() -> bytes:
    """A sound safetensors file of one number."""
    header = json.dumps({"one": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0)


@contextmanager
def delivering(folder: Path) -> Iterator[Sandbox]:
    """The service, keeping its state in `folder`; its jobs deliver at once."""
    with Sandbox(part("hf-jobs"), folder, speed=None) as sandbox:
        sandbox.part.container = Delivery(sandbox.part)
        yield sandbox


class Delivery:
    """A container that pushes `files` instead of running anything. result: goes over the job's result;
    lines: what the log says; message: of a failure."""

    def __init__(self, part: HfJobsPart, **files: bytes) -> None:
        self.part = part
        self.files = {"adapter_model.safetensors": weights(), "adapter_config.json": b'{"r": 4}', **files}
        self.result: dict[str, Any] = {}
        self.lines: list[str] = []
        self.message = ""

    def run(self, log: Path, request: Mapping[str, Any], mounts: Mapping[str, Mapping[str, Path]],
            scratch: Path, stop: object, variables: Mapping[str, str]) -> str:
        log.write_text("".join(f"{time.time()} {line}\n" for line in self.lines))
        if self.message:
            return self.message
        words, mounted = request["command"], mounts["/distillctl"]
        job = json.loads(mounted["job.json"].read_bytes())
        assert digest_file(mounted["train.jsonl"]) == job["digest"]
        digests = {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        result = {"model": job["model"], "folder": words[words.index("--name") + 1], "rows": job["rows"],
                  "seconds": 2.5, "files": digests, **self.result}
        self.push(words[words.index("--to") + 1],
                  {**self.files, "distillctl.json": json.dumps(result).encode()})
        return ""

    def push(self, repo: str, files: Mapping[str, bytes], kind: str = "model", private: bool = True) -> None:
        """Put files into a repo, as its first commit."""
        kept = {}
        for name, data in files.items():
            sha256 = hashlib.sha256(data).hexdigest()
            self.part.store.write_blob(sha256, data)
            kept[name] = {"size": len(data), "sha256": sha256, "lfs": True}
        oid = hashlib.sha1(repr(sorted(kept.items())).encode()).hexdigest()
        self.part.store.put("repo", f"{kind}/{repo}", {
            "kind": kind, "id": repo, "private": private,
            "commits": [{"oid": oid, "title": "", "files": kept}]})


def env(tmp_path, key=KEY, offline=False):
    return BackendEnv(tmp_path / "workspace", lambda name: key, time.time, offline)


def settings(sandbox, **more):
    return HfJobsSettings(**{"base_url": sandbox.url, **more})


def backend(sandbox, tmp_path, key=KEY, **more):
    return HfJobsBackend(settings(sandbox, **more), env(tmp_path, key))


def trained(backend, job):
    handle = backend.submit(job, backend.stage(job), new_token())
    assert to_end(backend, handle).state == "succeeded"
    return handle
