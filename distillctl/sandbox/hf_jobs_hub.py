"""The Hub's part of Hugging Face: accounts, namespaces, private repos, commits, large files.

The API: https://huggingface.co/docs/hub/api and https://huggingface.co/.well-known/openapi.json. Storage is
the Hub's older one (git-lfs), which its SDK takes where Xet is off.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import json
import re
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from distillctl.sandbox.wire import Call, ProviderPart, Refused, Reply, fingerprint, route
from distillctl.types import JSON

MOST_REGULAR_BYTES = 10 * 1024 * 1024
_REPO = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_LARGE = (".safetensors", ".bin", ".parquet", ".zip", ".gz", ".pt", ".npy", ".onnx", ".gguf", ".arrow")
_KINDS = {"models": "model", "datasets": "dataset"}


class HubRoutes(ProviderPart):
    """Repos as the jobs' data and students need them."""

    # --- who asks ---

    def account(self, call: Call) -> str:
        key = call.bearer()
        if call.url.startswith("/lfs-storage/"):
            return ""  # a signed address, as of a storage service
        if not key:
            raise Refused(401, "Invalid username or password.")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.store.get("guest", fingerprint(key)) or fingerprint(key)

    def error_body(self, refused: Refused) -> JSON:
        return {"error": refused.message, **{name: value for name, value in refused.details.items()
                                             if name != "code"}}

    def error_headers(self, refused: Refused) -> Mapping[str, str]:
        code = refused.details.get("code")
        text = " ".join(refused.message.split())
        said = {"X-Error-Message": text.encode("ascii", "replace").decode()}
        return {**said, "X-Error-Code": str(code)} if code else said

    @route("GET", "/api/whoami-v2", "whoami")
    def whoami(self, call: Call) -> JSON:
        role = "read" if call.bearer().startswith("read-") else "write"
        return {"type": "user", "id": call.account, "name": self.user(call.account), "fullname": "Sandbox",
                "isPro": False, "canPay": True, "periodEnd": None,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "sandbox", "role": role}}}

    @staticmethod
    def user(account: str) -> str:
        """The user whose token it is."""
        return f"user-{account[:8]}"

    def owns(self, account: str, namespace: str) -> bool:
        """Whether a namespace is the account's own; there are no organizations here."""
        return namespace == self.user(account)

    # --- repos ---

    @route("POST", "/api/repos/create", "repos.create")
    def create_repo(self, call: Call) -> JSON:
        asked = call.json()
        kind = asked.get("type") or "model"
        name, namespace = asked.get("name"), asked.get("organization") or self.user(call.account)
        if kind not in _KINDS.values():
            raise Refused(400, f"Invalid repo type: {kind}")
        if not isinstance(name, str) or not _REPO.fullmatch(name) or "--" in name or ".." in name:
            raise Refused(400, "Repo name must use alphanumeric chars, '-', '_' or '.', '--' and '..' are "
                               "forbidden, max length is 96")
        if not self.owns(call.account, str(namespace)):
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace "
                               f'"{namespace}"')
        id = f"{namespace}/{name}"
        url = f"{call.base_url}/{'datasets/' if kind == 'dataset' else ''}{id}"
        if self.store.get("repo", f"{kind}/{id}") is not None:
            raise Refused(409, f"You already created this {kind} repo", url=url)
        private = asked.get("visibility", "private" if asked.get("private") else "public") != "public"
        first = {"oid": secrets.token_hex(20), "title": "initial commit", "files": {}}
        self.store.put("repo", f"{kind}/{id}", {
            "kind": kind, "id": id, "private": private, "commits": [first]}, call.account)
        return {"url": url, "name": id, "id": secrets.token_hex(12)}

    @route("GET", "/api/{kind}/{ns}/{repo}", "repos.get")
    @route("GET", "/api/{kind}/{ns}/{repo}/revision/{rev}", "repos.get")
    def get_repo(self, call: Call) -> JSON:
        repo, commit = self._at(call)
        return {"_id": repo["id"], "id": repo["id"], "author": call.path["ns"], "sha": commit["oid"],
                "private": repo["private"], "disabled": False, "gated": False, "tags": [], "downloads": 0,
                "likes": 0, "siblings": [{"rfilename": path} for path in sorted(commit["files"])]}

    @route("GET", "/api/{kind}/{ns}/{repo}/tree/{rev}", "repos.tree")
    def tree(self, call: Call) -> JSON:
        _, commit = self._at(call)
        return [_entry(path, file) for path, file in sorted(commit["files"].items())]

    @route("POST", "/api/{kind}/{ns}/{repo}/paths-info/{rev}", "repos.paths")
    def paths_info(self, call: Call) -> JSON:
        _, commit = self._at(call)
        asked = urllib.parse.parse_qs(call.body.decode("utf-8", "replace")).get("paths", [])
        return [_entry(path, commit["files"][path]) for path in asked if path in commit["files"]]

    # --- uploads ---

    @route("POST", "/api/{kind}/{ns}/{repo}/preupload/{rev}", "repos.preupload")
    def preupload(self, call: Call) -> JSON:
        _, commit = self._at(call, write=True)
        files = call.json().get("files")
        if not isinstance(files, list):
            raise Refused(400, '"files" is required')
        return {"commitOid": commit["oid"], "files": [self._upload_mode(file, commit) for file in files]}

    @route("POST", "/datasets/{ns}/{repo}.git/info/lfs/objects/batch", "lfs.batch")
    @route("POST", "/{ns}/{repo}.git/info/lfs/objects/batch", "lfs.batch")
    def lfs_batch(self, call: Call) -> JSON:
        call.path["kind"] = "datasets" if call.url.startswith("/datasets/") else "models"
        self._at(call, write=True)
        asked = call.json()
        if asked.get("operation") != "upload" or "basic" not in asked.get("transfers", ["basic"]):
            raise Refused(422, "Only uploads with the basic transfer are served here")
        return {"transfer": "basic", "objects": [self._lfs_object(call, each) for each in asked["objects"]]}

    @route("PUT", "/lfs-storage/{ticket}", "lfs.put")
    def lfs_put(self, call: Call) -> Reply:
        ticket = self.store.get("ticket", call.path["ticket"])
        if ticket is None:
            return Reply(b"<Error><Code>AccessDenied</Code></Error>", 403, {"Content-Type": "text/xml"})
        if hashlib.sha256(call.body).hexdigest() != ticket["oid"]:
            return Reply(b"<Error><Code>BadDigest</Code></Error>", 400, {"Content-Type": "text/xml"})
        self.store.write_blob(ticket["oid"], call.body)
        return Reply(b"", headers={"ETag": f'"{ticket["oid"]}"'})

    @route("POST", "/api/lfs/verify", "lfs.verify")
    def lfs_verify(self, call: Call) -> JSON:
        asked = call.json()
        if not self._stored(str(asked.get("oid"))):
            raise Refused(404, "The object was not uploaded")
        return {}

    @route("POST", "/api/{kind}/{ns}/{repo}/commit/{rev}", "repos.commit")
    def commit(self, call: Call) -> JSON:
        repo, head = self._at(call, write=True)
        if call.path["rev"] != "main":
            raise Refused(404, f"Invalid rev id: {call.path['rev']}", code="RevisionNotFound")
        lines = list(_ndjson(call.body))
        header = next((value for key, value in lines if key == "header"), None)
        if header is None or not header.get("summary"):
            raise Refused(400, "A commit needs a header with a summary")
        if header.get("parentCommit") not in (None, head["oid"]):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head["files"])
        for key, value in lines:
            self._change(files, key, value)
        made = {"oid": secrets.token_hex(20), "title": header["summary"], "files": files}
        repo["commits"].append(made)
        self.store.put("repo", f"{repo['kind']}/{repo['id']}", repo)
        return {"success": True, "commitOid": made["oid"], "hookOutput": "",
                "commitUrl": f"{call.base_url}/{repo['id']}/commit/{made['oid']}"}

    # --- downloads ---

    @route("GET", "/datasets/{ns}/{repo}/resolve/{rev}/{path*}", "repos.file")
    @route("HEAD", "/datasets/{ns}/{repo}/resolve/{rev}/{path*}", "repos.file")
    @route("GET", "/{ns}/{repo}/resolve/{rev}/{path*}", "repos.file")
    @route("HEAD", "/{ns}/{repo}/resolve/{rev}/{path*}", "repos.file")
    def resolve(self, call: Call) -> Reply:
        call.path["kind"] = "datasets" if call.url.startswith("/datasets/") else "models"
        _, commit = self._at(call)
        file = commit["files"].get(call.path["path"])
        if file is None:
            raise Refused(404, "Entry not found", code="EntryNotFound")
        data = self.store.read_blob(file["sha256"])
        return Reply(data, headers={
            "Content-Type": "application/octet-stream", "ETag": f'"{_oid(file)}"',
            "X-Repo-Commit": commit["oid"], "Accept-Ranges": "bytes"})

    # --- what the jobs ask ---

    def repo(self, kind: str, id: str, account: str) -> dict[str, JSON] | None:
        """A repo that an account may read."""
        found = self.store.get("repo", f"{kind}/{id}")
        if found is None or (found["private"] and not self.owns(account, id.partition("/")[0])):
            return None
        return found

    def files_of(self, repo: Mapping[str, Any], revision: str | None) -> dict[str, JSON] | None:
        """The files of a repo at a revision; None where there is no such."""
        found = [commit for commit in repo["commits"] if revision in (None, "main", commit["oid"])]
        return found[-1]["files"] if found else None

    # --- what is behind them ---

    def _at(self, call: Call, write: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """The repo of a path and the commit of its revision (default: main). Refused as the Hub does: what
        is private is not there for others."""
        kind = _KINDS.get(call.path.get("kind", ""))
        id = f"{call.path['ns']}/{call.path['repo']}"
        repo = self.repo(kind, id, call.account) if kind else None
        if repo is None:
            raise Refused(404, "Repository not found", code="RepoNotFound")
        if write and (not self.owns(call.account, call.path["ns"]) or call.bearer().startswith("read-")):
            raise Refused(403, "Forbidden: you are not allowed to write to this repo")
        revision = call.path.get("rev", "main")
        for commit in reversed(repo["commits"]):
            if revision in ("main", commit["oid"]):
                return repo, commit
        raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def _upload_mode(self, file: JSON, commit: Mapping[str, Any]) -> JSON:
        try:
            path, size = str(file["path"]), int(file["size"])
            sample = base64.b64decode(file["sample"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise Refused(400, "Each file needs a path, a size and a sample") from None
        known = commit["files"].get(path)
        return {"path": path, "uploadMode": "lfs" if _is_large(path, size, sample) else "regular",
                "shouldIgnore": False, **({"oid": _oid(known)} if known else {})}

    def _lfs_object(self, call: Call, asked: JSON) -> JSON:
        oid, size = str(asked.get("oid")), asked.get("size")
        if not re.fullmatch(r"[0-9a-f]{64}", oid) or type(size) is not int:
            return {"oid": oid, "size": 0, "error": {"code": 422, "message": "Invalid oid or size"}}
        if self._stored(oid):
            return {"oid": oid, "size": size}
        ticket = secrets.token_urlsafe(24)
        self.store.put("ticket", ticket, {"oid": oid})
        return {"oid": oid, "size": size, "authenticated": True, "actions": {
            "upload": {"href": f"{call.base_url}/lfs-storage/{ticket}", "header": {}},
            "verify": {"href": f"{call.base_url}/api/lfs/verify", "header": {}}}}

    def _stored(self, oid: str) -> bool:
        return bool(re.fullmatch(r"[0-9a-f]{64}", oid)) and (self.store.folder / "blobs" / oid).is_file()

    def _change(self, files: dict[str, JSON], key: str, value: Mapping[str, Any]) -> None:
        """Apply one line of a commit."""
        if key == "header":
            return
        path = value.get("path")
        if not isinstance(path, str) or not path or path.startswith("/") or {"..", ".git", "", "."} & set(
                path.split("/")):
            raise Refused(400, f"Invalid path: {path!r}")
        if key == "file":
            files[path] = self._regular(path, value)
        elif key == "lfsFile":
            if not self._stored(str(value.get("oid"))):
                raise Refused(400, f"The LFS object of {path} was not uploaded")
            files[path] = {"size": value["size"], "sha256": value["oid"], "lfs": True}
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, "A file with this name doesn't exist", code="EntryNotFound")
        else:
            raise Refused(400, f"Unknown operation: {key}")

    def _regular(self, path: str, value: Mapping[str, Any]) -> dict[str, JSON]:
        if value.get("encoding") != "base64":
            raise Refused(400, "A file's content must be base64")
        data = base64.b64decode(value.get("content", ""))
        if _is_large(path, len(data), data[:512]):
            raise Refused(400, f"Your push was rejected because {path} is binary or larger than 10 MiB. "
                               "Please use https://git-lfs.github.com/ to store large files.")
        sha256 = hashlib.sha256(data).hexdigest()
        self.store.write_blob(sha256, data)
        return {"size": len(data), "sha256": sha256, "lfs": False,
                "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


def _is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file belongs into large file storage: by its name, its size, or for being binary."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # it may end within a letter
        binary = b"\0" in sample
    except UnicodeDecodeError:
        binary = True
    return size > 0 and (binary or size > MOST_REGULAR_BYTES or path.endswith(_LARGE))


def _oid(file: Mapping[str, Any]) -> str:
    return file["sha256"] if file["lfs"] else file["oid"]


def _entry(path: str, file: Mapping[str, Any]) -> JSON:
    """One row of a listing."""
    if not file["lfs"]:
        return {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
    pointer = (f"version https://git-lfs.github.com/spec/v1\noid sha256:{file['sha256']}\n"
               f"size {file['size']}\n").encode()
    return {"type": "file", "oid": hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(),
            "size": file["size"], "path": path,
            "lfs": {"oid": file["sha256"], "size": file["size"], "pointerSize": len(pointer)}}


def _ndjson(body: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in body.splitlines():
        try:
            row = json.loads(line)
            key, value = row["key"], row["value"]
        except (ValueError, KeyError, TypeError):
            raise Refused(400, "Each line must be a JSON object with a key and a value") from None
        if not isinstance(value, dict):
            raise Refused(400, f"The value of {key} must be an object")
        yield key, value
