"""Cloud Storage: rows go up under the digest of their content, weights come down checked.

Single requests without the SDK's retries, each with what became of it as `client.Failed`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from distillctl.backend import Rejected
from distillctl.hosted import unreachable
from distillctl.store.files import atomic_write
from distillctl_vertex.client import Failed, Service, raise_for_account, storage_failures
from distillctl_vertex.settings import VertexSettings

if TYPE_CHECKING:
    from google.cloud.storage import Blob

PERMISSIONS = ("storage.objects.create", "storage.objects.get", "storage.objects.list")
_CHUNK = 1 << 20
_MOST_OBJECTS = 10_000  # below one folder; a student has some dozens


@dataclass(frozen=True)
class Stored:
    """An object in the bucket. crc32c: base64, as Cloud Storage writes it."""

    name: str
    size: int
    crc32c: str


class Objects:
    """The objects of one bucket."""

    def __init__(self, service: Service, settings: VertexSettings) -> None:
        self._service, self._settings = service, settings

    def missing_permissions(self) -> list[str]:
        """Which of `PERMISSIONS` this account lacks on the bucket. Raises Failed."""
        with storage_failures():
            given = self._service.bucket.test_iam_permissions(
                list(PERMISSIONS), timeout=self._settings.timeout, retry=None)
        return [name for name in PERMISSIONS if name not in given]

    def put_once(self, name: str, data: bytes) -> None:
        """Create an object, or find it there with this content. Raises Rejected, Unreachable, and
        BackendError where the credentials are refused."""
        with self._asked():
            there = self._look(name)
            if there is None:
                try:
                    with storage_failures():
                        self._blob(name).upload_from_string(
                            data, content_type="application/jsonl", if_generation_match=0, checksum="crc32c",
                            timeout=self._settings.timeout, retry=None)
                    return
                except Failed as failed:
                    if failed.status != 412:  # somebody was faster
                        raise
                    there = self._look(name)
        if there is None or (there.size, there.crc32c) != (len(data), _crc32c_of(data)):
            raise Rejected(f"gs://{self._settings.bucket}/{name} is there with other content than its name "
                           "says; delete it, or set another backends.vertex.prefix")

    def under(self, prefix: str) -> list[Stored]:
        """Every object below a folder. Raises as `put_once`, and Rejected where they are far too many."""
        with self._asked(), storage_failures():
            found = self._service.bucket.client.list_blobs(
                self._service.bucket, prefix=prefix, fields="items(name,size,crc32c),nextPageToken",
                timeout=self._settings.timeout, retry=None)
            listed = [Stored(blob.name, int(blob.size), str(blob.crc32c))
                      for blob in islice(found, _MOST_OBJECTS + 1)]
        if len(listed) > _MOST_OBJECTS:
            raise Rejected(f"there are more than {_MOST_OBJECTS} objects below it")
        return listed

    def fetch(self, stored: Stored, path: Path) -> None:
        """Bring an object to `path`, whole or not at all; one that is there whole is kept. Raises as
        `put_once`, and Unreachable where other bytes came than the listing promised."""
        if path.is_file() and path.stat().st_size == stored.size and _crc32c_in(path) == stored.crc32c:
            return
        with self._asked(), atomic_write(path, "wb") as file:
            with storage_failures():
                self._blob(stored.name).download_to_file(
                    _AtMost(file, stored.size), checksum=None, raw_download=True,
                    timeout=self._settings.timeout, retry=None)
            file.flush()
            if file.tell() != stored.size or _crc32c_in(Path(file.name)) != stored.crc32c:
                raise Failed(f"gs://{self._settings.bucket}/{stored.name} came damaged")

    def _look(self, name: str) -> Stored | None:
        blob = self._blob(name)
        try:
            with storage_failures():
                blob.reload(timeout=self._settings.timeout, retry=None)
                return Stored(name, int(blob.size), str(blob.crc32c))
        except Failed as failed:
            if failed.status == 404 and "bucket does not exist" not in str(failed):
                return None
            raise

    def _blob(self, name: str) -> Blob:
        return self._service.bucket.blob(name)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """What a failed call means for the caller."""
        try:
            yield
        except Failed as failed:
            raise_for_account(failed, self._settings)
            if failed.refused and failed.status != 429:
                raise Rejected(f"Cloud Storage says: {failed}") from failed
            raise unreachable(failed) from failed


class _AtMost:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._most = file, most
        self.seek = file.seek

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._most:
            raise Failed(f"more than the {self._most} bytes that were listed came")
        return self._file.write(data)


def _crc32c_of(data: bytes) -> str:
    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def _crc32c_in(path: Path) -> str:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()
