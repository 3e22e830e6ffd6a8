"""Cloud Storage, as far as tuning needs it: uploads, downloads, listings, permissions of one bucket.

Wire format: https://docs.cloud.google.com/storage/docs/json_api/v1 (objects, buckets, resumable uploads).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import time
import urllib.parse
from datetime import UTC, datetime

from distillctl.sandbox.store import Store
from distillctl.sandbox.wire import Call, Refused, Reply, route
from distillctl.types import JSON

BUCKET = "sandbox-bucket"
_MOST_NAME = 1024  # bytes of an object's name
_REASONS = {400: "invalid", 401: "required", 403: "forbidden", 404: "notFound", 412: "conditionNotMet"}


def refuse(status: int, message: str) -> Refused:
    """A refusal in Cloud Storage's shape."""
    return Refused(status, message, errors=[
        {"message": message, "domain": "global", "reason": _REASONS.get(status, "invalid")}])


class StorageRoutes:
    """The routes of Cloud Storage, for a part that keeps its state in `store`."""

    store: Store

    @route("GET", "/storage/v1/b/{bucket}", "buckets.get")
    def get_bucket(self, call: Call) -> JSON:
        self._bucket(call)
        return {"kind": "storage#bucket", "id": BUCKET, "name": BUCKET, "projectNumber": "100000000001",
                "location": "US-CENTRAL1", "locationType": "region", "storageClass": "STANDARD"}

    @route("GET", "/storage/v1/b/{bucket}/iam/testPermissions", "buckets.permissions")
    def test_permissions(self, call: Call) -> JSON:
        self._bucket(call)
        asked = urllib.parse.parse_qs(urllib.parse.urlsplit(call.url).query).get("permissions", [])
        if not asked or any(not re.fullmatch(r"storage(\.\w+){2}", name) for name in asked):
            raise refuse(400, "Invalid argument.")
        return {"kind": "storage#testIamPermissionsResponse", "permissions": asked}

    @route("POST", "/upload/storage/v1/b/{bucket}/o", "objects.create")
    def create_object(self, call: Call) -> Reply | JSON:
        self._bucket(call)
        kind = call.query.get("uploadType")
        if kind == "multipart":
            asked, data = _related(call)
            return self._create(call, asked, data, call.query.get("ifGenerationMatch"))
        if kind != "resumable":
            raise refuse(400, "Invalid upload request.")
        asked = json.loads(call.body or b"{}")
        asked.setdefault("name", call.query.get("name"))
        session = secrets.token_urlsafe(24)
        self._check_free(call, asked, call.query.get("ifGenerationMatch"))
        self.store.put("upload", session, {
            "asked": asked, "generation": call.query.get("ifGenerationMatch"), "size": 0,
            "type": call.headers.get("x-upload-content-type")}, call.account)
        self.store.write_blob(f"upload-{session}", b"")
        return Reply(b"", headers={"Location": f"{call.base_url}/upload/storage/v1/b/{BUCKET}/o?"
                                               f"uploadType=resumable&upload_id={session}"})

    @route("PUT", "/upload/storage/v1/b/{bucket}/o", "objects.upload")
    def upload_piece(self, call: Call) -> Reply | JSON:
        session = call.query.get("upload_id", "")
        upload = self.store.get("upload", session, call.account)
        if upload is None:
            raise refuse(404, "The upload session is not there.")
        piece = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)",
                             call.headers.get("content-range", "bytes */*"))
        if piece is None or int(piece[1] or upload["size"]) != upload["size"]:
            raise refuse(400, "Failed to parse Content-Range header.")
        data = self.store.read_blob(f"upload-{session}") + call.body
        self.store.write_blob(f"upload-{session}", data)
        self.store.put("upload", session, {**upload, "size": len(data)}, call.account)
        if piece[2] == "*" or len(data) < int(piece[2]):
            return Reply(b"", 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {})
        asked = {"contentType": upload["type"], **upload["asked"]}
        made = self._create(call, asked, data, upload["generation"])
        self.store.delete("upload", session)
        self.store.delete_blob(f"upload-{session}")
        return made

    @route("GET", "/storage/v1/b/{bucket}/o", "objects.list")
    def list_objects(self, call: Call) -> JSON:
        self._bucket(call)
        prefix, after = call.query.get("prefix", ""), call.query.get("pageToken", "")
        most = call.number("maxResults", 1000, 1000)
        rows = sorted((row for row in self.store.list("object", call.account)
                       if row["name"].startswith(prefix) and row["name"] > after),
                      key=lambda row: row["name"])
        more = {"nextPageToken": rows[most - 1]["name"]} if len(rows) > most else {}
        return {"kind": "storage#objects", "items": rows[:most], **more}

    @route("GET", "/storage/v1/b/{bucket}/o/{name*}", "objects.get")
    def get_object(self, call: Call) -> Reply | JSON:
        if call.query.get("alt") == "media":
            return self.download(call)
        return self._object(call)

    @route("GET", "/download/storage/v1/b/{bucket}/o/{name*}", "objects.download")
    def download(self, call: Call) -> Reply:
        found = self._object(call)
        return Reply(self.store.read_blob(_blob(call.account, found["name"])), headers={
            "Content-Type": found["contentType"] or "application/octet-stream",
            "X-Goog-Hash": f"crc32c={found['crc32c']},md5={found['md5Hash']}",
            "X-Goog-Generation": found["generation"]})

    @route("DELETE", "/storage/v1/b/{bucket}/o/{name*}", "objects.delete")
    def delete_object(self, call: Call) -> Reply:
        found = self._object(call)
        self.store.delete("object", _id(call.account, found["name"]))
        self.store.delete_blob(_blob(call.account, found["name"]))
        return Reply(b"", 204)

    # --- for the tuning part ---

    def put_object(self, account: str, name: str, data: bytes, kind: str | None = None) -> dict[str, JSON]:
        """Write an object as if it had been uploaded."""
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        generation = str(time.time_ns() // 1000)
        found = {
            "kind": "storage#object", "id": f"{BUCKET}/{name}/{generation}", "name": name, "bucket": BUCKET,
            "generation": generation, "metageneration": "1", "contentType": kind, "size": str(len(data)),
            "storageClass": "STANDARD", "timeCreated": now, "updated": now, "crc32c": crc32c(data),
            "md5Hash": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            "etag": f"C{generation}="}
        self.store.write_blob(_blob(account, name), data)
        self.store.put("object", _id(account, name), found, account)
        return found

    def read_object(self, account: str, uri: str) -> bytes | None:
        """The content of a gs:// address, None where there is no such object."""
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        found = self.store.get("object", _id(account, name)) if bucket == BUCKET else None
        return None if found is None else self.store.read_blob(_blob(account, name))

    # --- checks ---

    def _bucket(self, call: Call) -> None:
        if call.path["bucket"] != BUCKET:
            raise refuse(404, "The specified bucket does not exist.")

    def _object(self, call: Call) -> dict[str, JSON]:
        self._bucket(call)
        found = self.store.get("object", _id(call.account, call.path["name"]))
        if found is None:
            raise refuse(404, f"No such object: {BUCKET}/{call.path['name']}")
        return found

    def _check_free(self, call: Call, asked: dict[str, JSON], generation: str | None) -> str:
        """The name that may be written. Create-only where the client asked for generation 0."""
        name = asked.get("name")
        if not isinstance(name, str) or not name or len(name.encode()) > _MOST_NAME:
            raise refuse(400, "Required parameter: name")
        there = self.store.get("object", _id(call.account, name))
        if generation is not None and generation != (there["generation"] if there else "0"):
            raise refuse(412, "At least one of the pre-conditions you specified did not hold.")
        return name

    def _create(self, call: Call, asked: dict[str, JSON], data: bytes, generation: str | None) -> JSON:
        name = self._check_free(call, asked, generation)
        for field, own in (("crc32c", crc32c(data)), ("md5Hash", base64.b64encode(
                hashlib.md5(data, usedforsecurity=False).digest()).decode())):
            if asked.get(field) not in (None, own):
                raise refuse(400, f"Provided {field} \"{asked[field]}\" doesn't match calculated {field} "
                                  f"\"{own}\".")
        return self.put_object(call.account, name, data, asked.get("contentType"))


def crc32c(data: bytes) -> str:
    """The checksum as Cloud Storage writes it."""
    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def _related(call: Call) -> tuple[dict[str, JSON], bytes]:
    """The two parts of a multipart/related body: what the object is to be, and its content."""
    boundary = re.search(r'boundary="?([^";]+)', call.headers.get("content-type", ""))
    pieces = (b"\r\n" + call.body).split(b"\r\n--" + boundary[1].encode())[1:-1] if boundary else []
    if len(pieces) != 2:
        raise refuse(400, "Multipart must have two parts.")
    heads, contents = zip(*(piece.partition(b"\r\n\r\n")[::2] for piece in pieces), strict=True)
    kind = re.search(rb"(?i)content-type:\s*([^\r\n]+)", heads[1])
    return {"contentType": kind[1].decode() if kind else None, **json.loads(contents[0])}, contents[1]


def _id(account: str, name: str) -> str:
    return f"{account}/{name}"


def _blob(account: str, name: str) -> str:
    """A file name for an object, whatever the object is called."""
    return hashlib.sha256(_id(account, name).encode()).hexdigest()
