"""The ledger: one SQLite file a workspace with every answer, job, event and dollar.

It is a ledger of money, so every commit reaches the disk (synchronous=FULL), a damaged file is refused
rather than replaced, and an answer and what it cost are written in one transaction. Answers are keyed by
everything that determines them (`answer_key`), so a second run, another backend or another recipe with
the same prompt and teacher asks nothing twice.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distillctl.backend import TERMINAL, JobEvent, JobHandle, Snapshot
from distillctl.errors import Problem, StorageError
from distillctl.store.files import digest_json
from distillctl.types import JSON, Answer, Request

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE answers (
  key TEXT PRIMARY KEY, request_id TEXT NOT NULL, sample INTEGER NOT NULL, answer TEXT NOT NULL,
  run TEXT NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE spend (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, kind TEXT NOT NULL, ref TEXT NOT NULL,
  usd REAL, at_most REAL, created REAL NOT NULL, UNIQUE (kind, ref)
);
CREATE INDEX spend_run ON spend (run);
CREATE TABLE jobs (
  token TEXT PRIMARY KEY, key TEXT NOT NULL, run TEXT NOT NULL, backend TEXT NOT NULL,
  intended REAL NOT NULL, staged TEXT, handle TEXT, state TEXT NOT NULL, raw TEXT NOT NULL DEFAULT '',
  message TEXT NOT NULL DEFAULT '', cursor TEXT, updated REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_key ON jobs (key);
CREATE TABLE events (
  token TEXT NOT NULL, key TEXT NOT NULL, time REAL NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL,
  data TEXT NOT NULL, seen INTEGER NOT NULL, PRIMARY KEY (token, key)
) WITHOUT ROWID;
"""

# What no later word changes. Not "lost": a job that another account's key could not see is there again
# once the right key is back.
_SETTLED = (*sorted(TERMINAL - {"lost"}), "duplicate")


@dataclass(frozen=True)
class Spent:
    """What a run has spent: `usd` of the items with a known price, and how many had none.

    at_most: the most that those may have cost, as far as a bound was known when they were paid.
    """

    usd: float
    unknown: int
    at_most: float = 0.0


@dataclass(frozen=True)
class JobRow:
    """A training job as the ledger knows it. handle is None between the intent and the record."""

    token: str
    key: str
    run: str
    backend: str
    intended: float
    state: str
    raw: str
    message: str
    staged: Mapping[str, JSON] | None
    handle: JobHandle | None
    cursor: str | None
    updated: float


def answer_key(identity: Mapping[str, JSON], request: Request) -> str:
    """The identity of an answer: predictor, whole prompt and sample index."""
    return digest_json({"predictor": identity, "messages": list(request.messages), "sample": request.sample})


class Ledger:
    """Opens (and creates) the ledger at `path`. Raises StorageError when it is damaged or newer."""

    def __init__(self, path: Path, clock=time.time) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise sqlite3.DatabaseError(damage)
            self._migrate()
        except sqlite3.Error as error:
            raise StorageError(Problem(
                f"the ledger cannot be opened: {error}", where=str(path),
                hint="it holds paid answers: restore it from a copy, or move it away to start a new one",
            )) from error

    def _migrate(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StorageError(Problem(
                f"the ledger has schema {version}, this distillctl knows up to {SCHEMA_VERSION}",
                where=str(self.path), hint="upgrade distillctl"))
        if version == 0:
            with self._writing() as db:
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    for statement in _SCHEMA.strip().split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise StorageError(Problem(f"the ledger cannot be written: {error}",
                                           where=str(self.path))) from error

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- answers and spend ---

    def answers(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there, by key."""
        found: dict[str, Answer] = {}
        with self._lock:
            for start in range(0, len(keys), 500):
                part = keys[start:start + 500]
                rows = self._db.execute(
                    f"SELECT key, answer FROM answers WHERE key IN ({','.join('?' * len(part))})", part)
                found.update((key, Answer.from_json(json.loads(text))) for key, text in rows)
        return found

    def record_answers(self, run: str, kind: str, rows: Iterable[tuple[str, Request, Answer]],
                       paid: bool, at_most: Mapping[str, float] | None = None) -> None:
        """Write answers, on disk when this returns; an answer that is already there stays as it is.

        kind: who answered ("teacher", "student"). paid: book each answer's cost, unknown where it has
        none; False for what costs nothing to ask (a recording, a model on this machine). A rejected
        request ("failed") is never booked. at_most: by key, the most that an answer without a known
        cost can have cost.
        """
        now = self._clock()
        with self._writing() as db:
            for key, request, answer in rows:
                added = db.execute(
                    "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)",
                    (key, request.id, request.sample, json.dumps(answer.as_json()), run, now)).rowcount
                if added and paid and answer.finish != "failed":
                    db.execute("INSERT OR IGNORE INTO spend (run, kind, ref, usd, at_most, created) "
                               "VALUES (?, ?, ?, ?, ?, ?)",
                               (run, kind, key, answer.cost_usd, (at_most or {}).get(key), now))

    def record_spend(self, run: str, kind: str, ref: str, usd: float | None,
                     at_most: float | None = None) -> None:
        """Book a cost once per (kind, ref); a later call updates the amount (a job's bill grows).

        at_most: where `usd` is not known, the most that it can be.
        """
        with self._writing() as db:
            db.execute("INSERT INTO spend (run, kind, ref, usd, at_most, created) VALUES (?, ?, ?, ?, ?, ?) "
                       "ON CONFLICT (kind, ref) DO UPDATE SET usd = excluded.usd, at_most = excluded.at_most",
                       (run, kind, ref, usd, at_most, self._clock()))

    def spent(self, *runs: str, shared: Collection[str] = (), apart_from: str = "") -> Spent:
        """What `runs` have spent so far; and, of whatever run, what is booked under one of the references in
        `shared` (an answer's key, a job's token), attempts that failed included. apart_from: a kind of
        spending that is left out."""
        query = "SELECT run, ref, usd, at_most FROM spend WHERE kind != ?"
        with self._lock:
            rows = self._db.execute(query, (apart_from,)).fetchall() if shared else (
                self._db.execute(f"{query} AND run IN ({','.join('?' * len(runs))})",
                                 (apart_from, *runs)).fetchall())
        wanted, references = set(runs), set(shared)
        rows = [row for row in rows if row[0] in wanted or row[1].partition("#")[0] in references]
        return Spent(sum((usd for *_, usd, _ in rows if usd is not None), 0.0),
                     sum(usd is None for *_, usd, _ in rows),
                     sum((at_most or 0.0 for *_, usd, at_most in rows if usd is None), 0.0))

    # --- jobs ---

    def intend_job(self, token: str, key: str, run: str, backend: str, staged: Mapping[str, JSON]) -> None:
        """Write down that a job is about to be created, before it is."""
        now = self._clock()
        with self._writing() as db:
            db.execute("INSERT INTO jobs (token, key, run, backend, intended, staged, state, updated) "
                       "VALUES (?, ?, ?, ?, ?, ?, 'intended', ?)",
                       (token, key, run, backend, now, json.dumps(dict(staged)), now))

    def record_handle(self, token: str, handle: JobHandle) -> None:
        """Write down the job that came of an intent."""
        with self._writing() as db:
            db.execute("UPDATE jobs SET handle = ?, state = 'queued', updated = ? WHERE token = ?",
                       (json.dumps(handle.as_json()), self._clock(), token))

    def renew_intent(self, token: str) -> None:
        """Write down that a job which nobody has found is about to be created again."""
        with self._writing() as db:
            db.execute("UPDATE jobs SET intended = ?1, updated = ?1 WHERE token = ?2 AND handle IS NULL",
                       (self._clock(), token))

    def record_duplicate(self, token: str, handle: JobHandle) -> None:
        """Write down a further job that carries `token`, as a row of its own in state "duplicate"."""
        now = self._clock()
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO jobs (token, key, run, backend, intended, staged, handle, "
                       "state, updated) SELECT ?, key, run, backend, ?, staged, ?, 'duplicate', ? "
                       "FROM jobs WHERE token = ?",
                       (f"{token}.{handle.job_id}", now, json.dumps(handle.as_json()), now, token))

    def record_event(self, token: str, event: JobEvent) -> None:
        """Add a line of the core's own to a job's story."""
        with self._writing() as db:
            self._add_event(db, token, event)

    def record_state(self, token: str, state: str, message: str = "") -> None:
        """Write down a state that no poll gave: "rejected", or "cancelled" before it was created.
        Settled states stick."""
        with self._writing() as db:
            db.execute(f"UPDATE jobs SET state = ?, message = ?, updated = ? WHERE token = ? "
                       f"AND state NOT IN ({','.join('?' * len(_SETTLED))})",
                       (state, message, self._clock(), token, *_SETTLED))

    def record_snapshot(self, token: str, snapshot: Snapshot) -> None:
        """Write a poll's outcome, its events and its cursor together. Settled states stick."""
        now = self._clock()
        with self._writing() as db:
            for event in snapshot.events:
                self._add_event(db, token, event)
            db.execute("UPDATE jobs SET cursor = ?, updated = ? WHERE token = ?",
                       (snapshot.cursor, now, token))
            db.execute(f"UPDATE jobs SET state = ?, raw = ?, message = ? WHERE token = ? "
                       f"AND state NOT IN ({','.join('?' * len(_SETTLED))})",
                       (snapshot.state, snapshot.raw, snapshot.message, token, *_SETTLED))

    @staticmethod
    def _add_event(db: sqlite3.Connection, token: str, event: JobEvent) -> None:
        db.execute("INSERT OR IGNORE INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6, "
                   "(SELECT COUNT(*) FROM events WHERE token = ?1))",
                   (token, event.key, event.time, event.level, event.message, json.dumps(dict(event.data))))

    def jobs(self, *, key: str | None = None, run: str | None = None, token: str | None = None,
             ) -> list[JobRow]:
        """Jobs, newest intent last; of one training key, of one run, with one token, or all."""
        with self._lock:
            rows = self._db.execute(
                "SELECT token, key, run, backend, intended, state, raw, message, staged, handle, cursor, "
                "updated FROM jobs WHERE (?1 IS NULL OR key = ?1) AND (?2 IS NULL OR run = ?2) "
                "AND (?3 IS NULL OR token = ?3) ORDER BY intended, token", (key, run, token)).fetchall()
        return [JobRow(*row[:8], json.loads(row[8]) if row[8] else None,
                       JobHandle.from_json(json.loads(row[9])) if row[9] else None, row[10], row[11])
                for row in rows]

    def unsettled(self, backend: str, key_starts: str) -> list[JobRow]:
        """Jobs of `backend` whose keys begin so and whose cost is not settled: what they made may not have
        been taken home yet. Oldest first."""
        with self._lock:
            settled = {ref for (ref,) in self._db.execute("SELECT ref FROM spend WHERE usd IS NOT NULL "
                                                          "AND ref IN (SELECT token FROM jobs)")}
        return [row for row in self.jobs() if row.backend == backend and row.key.startswith(key_starts)
                and row.state not in ("duplicate", "rejected") and row.token not in settled]

    def events(self, token: str, after: int = -1) -> list[tuple[int, JobEvent]]:
        """A job's events with their running number, those after `after`, in the order they were seen."""
        with self._lock:
            rows = self._db.execute(
                "SELECT seen, key, time, level, message, data FROM events WHERE token = ? AND seen > ? "
                "ORDER BY seen", (token, after)).fetchall()
        return [(row[0], JobEvent(row[1], row[2], row[4], row[3], json.loads(row[5]))) for row in rows]
