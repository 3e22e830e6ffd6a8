"""What a sandbox keeps on disk: documents by kind and id, uploaded bytes, a log of requests, charges.

One SQLite file and a folder of blobs. No key is ever written: accounts are fingerprints.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distillctl.store.files import atomic_write, safe_join
from distillctl.types import JSON

_SCHEMA = """
CREATE TABLE IF NOT EXISTS doc (kind TEXT, id TEXT, account TEXT, number INTEGER, body TEXT,
                                PRIMARY KEY (kind, id));
CREATE INDEX IF NOT EXISTS doc_order ON doc (kind, account, number);
CREATE TABLE IF NOT EXISTS request (number INTEGER PRIMARY KEY, time REAL, route TEXT, method TEXT, path TEXT,
                                    fault TEXT, status INTEGER);
CREATE TABLE IF NOT EXISTS charge (number INTEGER PRIMARY KEY, account TEXT, what TEXT, id TEXT, amount REAL,
                                   unit TEXT, UNIQUE (what, id));
"""


class Store:
    """State in `folder`. Every change happens inside `transaction`, one at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.RLock()
        self._depth = 0
        self._db = sqlite3.connect(folder / "state.db", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # outlives a kill; a power cut may take the last calls
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Alone, and all or nothing; may be nested, the outermost counts."""
        with self._lock:
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._db.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._db.execute("COMMIT")

    # --- documents ---

    def put(self, kind: str, id: str, body: JSON, account: str = "") -> None:
        """Write a document; its place in listings and its account are those of the first time."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO doc VALUES (?, ?, ?, (SELECT COALESCE(MAX(number), 0) + 1 FROM doc), ?) "
                "ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
                (kind, id, account, json.dumps(body)))

    def get(self, kind: str, id: str, account: str | None = None) -> JSON | None:
        """A document; with `account`, only one of that account."""
        with self._lock:
            row = self._db.execute("SELECT body, account FROM doc WHERE kind = ? AND id = ?",
                                   (kind, id)).fetchone()
        return json.loads(row[0]) if row and account in (None, row[1]) else None

    def list(self, kind: str, account: str | None = None) -> list[JSON]:
        """All documents of a kind, newest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT body FROM doc WHERE kind = ? AND ? IN (account, '*') ORDER BY number DESC",
                (kind, "*" if account is None else account)).fetchall()
        return [json.loads(body) for (body,) in rows]

    def delete(self, kind: str, id: str) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM doc WHERE kind = ? AND id = ?", (kind, id))

    # --- uploaded bytes ---

    def write_blob(self, name: str, data: bytes) -> None:
        with atomic_write(self._blob(name), "wb") as file:
            file.write(data)

    def read_blob(self, name: str) -> bytes:
        return self._blob(name).read_bytes()

    def delete_blob(self, name: str) -> None:
        self._blob(name).unlink(missing_ok=True)

    def _blob(self, name: str) -> Path:
        return safe_join(self.folder / "blobs", name)

    # --- what happened ---

    def log(self, time: float, route: str, method: str, path: str, fault: str) -> int:
        """Note that a request has arrived; its number."""
        with self.transaction():
            return self._db.execute(
                "INSERT INTO request (time, route, method, path, fault) VALUES (?, ?, ?, ?, ?)",
                (time, route, method, path, fault)).lastrowid or 0

    def answered(self, number: int, status: int) -> None:
        with self.transaction():
            self._db.execute("UPDATE request SET status = ? WHERE number = ?", (status, number))

    def requests(self) -> dict[str, int]:
        """How many requests of each route have arrived, whatever became of them."""
        with self._lock:
            return dict(self._db.execute("SELECT route, COUNT(*) FROM request GROUP BY route"))

    def charge(self, account: str, what: str, id: str, amount: float, unit: str) -> None:
        """Bill something, once for each `what` and `id`."""
        with self.transaction():
            self._db.execute("INSERT OR IGNORE INTO charge (account, what, id, amount, unit) "
                             "VALUES (?, ?, ?, ?, ?)", (account, what, id, amount, unit))

    def charges(self) -> list[dict[str, JSON]]:
        """Everything billed, oldest first: {"account", "what", "id", "amount", "unit"}."""
        with self._lock:
            rows = self._db.execute("SELECT account, what, id, amount, unit FROM charge ORDER BY number")
            names = ("account", "what", "id", "amount", "unit")
            return [dict(zip(names, row, strict=True)) for row in rows]
