"""Files into a private dataset repo, each content once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from distillctl.backend import Rejected, Unreachable
from distillctl.hosted import unreachable
from distillctl.store.files import digest_file
from distillctl_hf_jobs.client import Failed, Service, raise_for_account
from distillctl_hf_jobs.settings import HfJobsSettings

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")


def put_files(service: Service, settings: HfJobsSettings, repo: str, files: Mapping[str, Path]) -> str:
    """See that a private dataset repo holds `files` (path there to file here); the commit that does.
    Raises Rejected, Unreachable, BackendError."""
    from huggingface_hub import CommitOperationAdd

    info = service.read(service.api.repo_info, repo, repo_type="dataset")
    if info is None:
        _send(service, settings, service.api.create_repo, repo, repo_type="dataset", private=True,
              exist_ok=True)
        info = service.read(service.api.repo_info, repo, repo_type="dataset")
    if info is None or not isinstance(info.sha, str):
        raise Unreachable(f"the repo {repo} was made and cannot be read")
    if info.private is not True:
        raise Rejected(f"{settings.endpoint}/datasets/{repo} is not private, so no data is sent there: make "
                       "it private, or set backends.hf-jobs.namespace")
    there = service.read(service.api.get_paths_info, repo, list(files), repo_type="dataset",
                         revision=info.sha) or []
    same = {entry.path for entry in there if entry.path in files and _is_same(entry, files[entry.path])}
    if same == set(files):
        return info.sha
    made = _send(service, settings, service.api.create_commit, repo, [
        CommitOperationAdd(path, files[path]) for path in files if path not in same], repo_type="dataset",
        commit_message="What a job of distillctl reads")
    return made.oid


def _send(service: Service, settings: HfJobsSettings, method, *args, **kwargs):
    """A request that changes the repo; sent again it changes nothing more."""
    try:
        return service.call(method, *args, **kwargs)
    except Failed as failed:
        raise_for_account(failed, settings)
        if failed.refused and failed.status not in (409, 412, 429):  # those: somebody else was quicker
            raise Rejected(f"{settings.host} says: {failed}") from failed
        raise unreachable(failed) from failed


def _is_same(there: RepoFile, here: Path) -> bool:
    """Whether a file of the repo has this content: large ones go by sha256, small ones by git's name."""
    if getattr(there, "lfs", None) is not None:
        return f"sha256:{there.lfs.sha256}" == digest_file(here)
    data = here.read_bytes() if getattr(there, "size", None) == here.stat().st_size else None
    return data is not None and there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
