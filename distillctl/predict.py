"""`distillctl predict`: a student answers the rows of a file, one line of output for each, in their order.

Memory does not grow with the file. The output is written as answers come, so a killed run goes on where it
ended: rows that are answered are kept, rows that failed are asked again. A bad row costs nobody else's
answer: it gets a line with its error.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from distillctl.data.formats import read_rows
from distillctl.errors import DataError, Problem, StorageError, UsageError
from distillctl.progress import Reporter, seconds_text
from distillctl.store.files import digest_json, read_jsonl
from distillctl.task import Task
from distillctl.testing.crash import crashpoint
from distillctl.types import JSON, Answer, Request
from distillctl.using import Student

PAID_AT_ONCE = 256  # rows that are handed to a student on the network together
HOPELESS = 20  # bad rows from the start on, with no good one, after which the file is refused
SHOWN = 20  # errors in the summary
SYNC_EVERY = 2.0  # seconds
MOST_WAITING = 8  # times a batch: lines that are held back for the sake of order
_ID = re.compile(r'{"id": (?:null|"(?:[^"\\]|\\.)*")')  # how a line begins

Line = Mapping[str, JSON]


@dataclass(frozen=True)
class Row:
    """A row of the input: its request, or what is wrong with it. where: file:line."""

    id: str | None
    what: Request | Problem
    where: str


Pair = tuple[Row, Line | None]  # the line that answers the row already


@dataclass
class Summary:
    """What became of a file. reused: answered by an earlier call. failed: rows that have no answer.
    unreadable: answers that the task cannot read. errors: the first of the failed, as text. values: how
    often each label was the answer, for classifications. seconds: of this call."""

    output: str
    rows: int = 0
    reused: int = 0
    failed: int = 0
    unreadable: int = 0
    errors: list[str] = field(default_factory=list)
    values: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def as_json(self) -> dict[str, JSON]:
        asked = self.rows - self.reused
        rate = asked / self.seconds if asked and self.seconds else None
        return {**vars(self), "values": dict(self.values.most_common()), "rows_per_s": rate}

    def count(self, line: Line, *, reused: bool, labels: bool) -> None:
        """Add one line of the output."""
        self.rows += 1
        self.reused += reused
        if line.get("error") is not None:
            self.failed += 1
            if len(self.errors) < SHOWN:
                self.errors.append(line["error"])
        elif line.get("value") is None:
            self.unreadable += 1
        elif labels:
            self.values[line["value"]] += 1


def read_requests(path: Path, task: Task, id_field: str | None) -> Iterator[Row]:
    """The rows of a JSONL, CSV or Parquet file as requests, one at a time.

    id_field: as in `data.id`; else `id`, else a hash of the row. Raises DataError for what is wrong with the
    whole file.
    """
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        if isinstance(row, Problem):
            if line == 0:
                raise DataError(row)
            yield Row(None, row, where)
            continue
        given = row.get(id_field or "id")
        if isinstance(given, bool | float | list | dict) or given == "" or (id_field and given is None):
            yield Row(None, Problem("an id is text or a whole number", where, id_field or "id", given), where)
            continue
        identity = digest_json(row).removeprefix("sha256:")[:16] if given is None else str(given)
        try:
            yield Row(identity, Request(identity, task.render(row, where)), where)
        except DataError as error:
            yield Row(identity, error.problems[0], where)


def predict(student: Student, rows: Iterator[Row], into: Path, reporter: Reporter, *,
            total: int | None = None) -> Summary:
    """Let a student answer every row, into a JSONL file; goes on with one that this wrote before.

    A line is {"id", "run", "output", "value"} with "probabilities" (calibrated on dev, where the student
    states any), "problem" (why `value` is null) or, for a row without an answer, "error". total: rows, for
    the progress. Raises UsageError where `into` holds something else, DataError, StudentError, BudgetError;
    what was answered until then is kept.
    """
    with _Output(into, student.run) as output:
        return _Work(student, output, reporter, total).run(rows)


def refuse_hopeless(rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows; raises DataError where the file begins with `HOPELESS` bad ones, or has only such."""
    first = list(islice(rows, HOPELESS))
    if first and all(isinstance(row.what, Problem) for row in first):
        raise DataError(*(row.what for row in first))
    return chain(first, rows)


def count_rows(path: Path) -> int | None:
    """About how many rows a file has: its lines; None where that is not known cheaply."""
    if path.suffix.lower() == ".parquet":
        return None
    count = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
    return max(1, count)


class _Work:
    """One pass over the input."""

    def __init__(self, student: Student, output: _Output, reporter: Reporter, total: int | None) -> None:
        self._student, self._output, self._reporter, self._total = student, output, reporter, total
        self._labels = bool(student.task.labels)
        self._summary = Summary(str(output.path))
        self._size = PAID_AT_ONCE if student.paid else student.predictor.max_batch
        self._started = time.monotonic()

    def run(self, rows: Iterator[Row]) -> Summary:
        with asyncio.Runner() as runner:
            runner.run(self._pass(rows))
        self._output.finish()
        if self._student.guard and (told := self._student.guard.told()):
            self._reporter.note(told, "warning")
        self._summary.seconds = time.monotonic() - self._started
        return self._summary

    async def _pass(self, rows: Iterator[Row]) -> None:
        """Ask batch after batch, as many at once as the student takes, and write them in their order."""
        under_way: deque[tuple[list[Pair], asyncio.Task[list[Answer]]]] = deque()
        try:
            for pairs in self._batches(rows):
                under_way.append((pairs, asyncio.create_task(self._ask(pairs))))
                await asyncio.sleep(0)  # it goes out before the next rows are read
                if len(under_way) == self._student.at_once:
                    await self._write_first(under_way)
            while under_way:
                await self._write_first(under_way)
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        await self._student.predictor.aclose()

    def _batches(self, rows: Iterator[Row]) -> Iterator[list[Pair]]:
        """The rows and the lines that they have already, in groups of which a call's worth is asked."""
        group: list[Pair] = []
        asked = 0
        for row, kept in self._output.beside(rows):
            group.append((row, kept))
            asked += kept is None
            if asked == self._size or len(group) == MOST_WAITING * self._size:
                yield group
                group, asked = [], 0
        if group:
            yield group

    async def _ask(self, pairs: list[Pair]) -> list[Answer]:
        """Answers to the good rows that have no line yet."""
        good = [row.what for row, kept in pairs if kept is None and isinstance(row.what, Request)]
        return await self._student.answer(good) if good else []

    async def _write_first(self, under_way: deque[tuple[list[Pair], asyncio.Task[list[Answer]]]]) -> None:
        """Write the lines of the batch that has been under way longest."""
        pairs, task = under_way.popleft()
        answers = iter(await task)
        for row, kept in pairs:
            line = kept
            if line is None:
                line = self._line(row, next(answers) if isinstance(row.what, Request) else None)
                self._output.write(line)
            else:
                self._output.keep(line)
            self._summary.count(line, reused=kept is not None, labels=self._labels)
        self._output.flush()
        crashpoint("after-predict-batch")
        self._tell()

    def _line(self, row: Row, answer: Answer | None) -> Line:
        line: dict[str, JSON] = {"id": row.id, "run": self._student.run}
        if answer is None:
            return line | {"output": None, "value": None, "error": _one_line(row.what)}
        read = self._student.read(answer)
        line |= {"output": answer.output, "value": read.value}
        if read.probabilities is not None:
            line["probabilities"] = {label: round(p, 6) for label, p in read.probabilities.items()}
        if answer.error is not None:
            line["error"] = f"{row.where}: {answer.error}"
        elif read.problem is not None:
            line["problem"] = "cut off" if answer.finish == "length" else read.problem
        return line

    def _tell(self) -> None:
        done, passed = self._summary.rows, time.monotonic() - self._started
        asked = done - self._summary.reused
        text = f"{done} rows"
        if asked and passed > 0:
            rate = asked / passed
            text += f"  {rate:.1f}/s"
            if self._total and self._total > done:
                text += f"  {seconds_text((self._total - done) / rate)} left"
        if self._summary.failed:
            text += f"  {self._summary.failed} failed"
        self._reporter.progress(done, max(self._total, done) if self._total else None, text)


def _one_line(problem: Problem) -> str:
    text = " ".join(str(replace(problem, hint=None)).split())
    return f"{text}; {problem.hint}" if problem.hint else text


class _Output:
    """The output file. It is always a whole beginning of the final one, but for half a line at its end.

    When lines of it failed, it becomes `<name>.before` and is written anew: good lines are taken over from
    there, so that order is kept. `.before` goes when all is done. Neither is touched where this run did not
    write it.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self._run = run
        self._before = path.with_name(path.name + ".before")
        self._done = 0  # whole lines that are there already
        self._earlier = 0  # whole lines of `.before`
        self._passed = 0
        self._synced = time.monotonic()

    def __enter__(self) -> _Output:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path) as file:
                self._examine_before()
                self._done, failed, end = self._examine(file, self.path)
                file.truncate(end)
            if failed and not self._before.exists():
                self.path.replace(self._before)
                self._done, self._earlier = 0, self._done
            self._file = _lock(self.path)
        except OSError as error:
            raise StorageError(Problem(f"cannot write: {error.strerror or error}", str(self.path))) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def beside(self, rows: Iterator[Row]) -> Iterator[Pair]:
        """The rows, each with the line that answers it already, if any."""
        here = islice(read_jsonl(self.path), self._done)
        older = islice(islice(read_jsonl(self._before), self._earlier), self._done, None)
        for number, row in enumerate(rows):
            path, lines = (self.path, here) if number < self._done else (self._before, older)
            line = next(lines, None)
            if line is not None and line["id"] != row.id and line.get("error") is None:
                raise UsageError(Problem(
                    "was written for other rows than these", f"{path}:{number + 1}", "id", line["id"],
                    hint=f"the row here is {row.id!r}; give another --output, or delete {path.name}"))
            good = number < self._done or (line is not None and line.get("error") is None)
            yield row, line if good else None

    def keep(self, line: Line) -> None:
        """Pass over a line that is there, or take it over from the earlier file."""
        if self._passed < self._done:
            self._passed += 1
        else:
            self.write(line)

    def write(self, line: Line) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        """Hand what was written to the system, and now and then to the disk."""
        try:
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_EVERY:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise StorageError(Problem(f"cannot write: {error.strerror or error}", str(self.path),
                                       hint="what was answered is kept; the same command goes on")) from None

    def finish(self) -> None:
        """All rows have their line. Raises UsageError where lines are left over."""
        if self._passed < self._done:
            raise UsageError(Problem("has more lines than there are rows", str(self.path),
                                     hint="it was written for another file: give another --output"))
        self._synced = float("-inf")
        self.flush()
        self._before.unlink(missing_ok=True)

    def _examine_before(self) -> None:
        """Count the lines of `.before`, if there is one. It is ours only where a line of it failed."""
        if not self._before.exists():
            return
        with self._before.open("rb") as file:
            self._earlier, failed, _ = self._examine(file, self._before)
        if not failed:
            raise UsageError(Problem("is not what a stopped `predict` leaves: no line of it failed",
                                     str(self._before), hint="move it away, or give another --output"))

    def _examine(self, file: BinaryIO, path: Path) -> tuple[int, int, int]:
        """Whole lines, how many of them failed, and where they end: half a line may follow."""
        file.seek(0)
        lines = failed = end = 0
        for raw in file:
            where = f"{path}:{lines + 1}"
            if raw.endswith(b"\n"):
                lines, end = lines + 1, end + len(raw)
                failed += self._is_failed(raw, where, path.name)
            elif not self._begins_a_line(raw.decode(errors="ignore")):  # it may end within a character
                raise _foreign(where)
        return lines, failed, end

    def _is_failed(self, raw: bytes, where: str, name: str) -> bool:
        try:
            line = json.loads(raw)
            _, run = line["id"], line["run"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _foreign(where) from None
        if run != self._run:
            raise UsageError(Problem("holds another student's answers", where, "run", run,
                                     hint=f"give another --output, or delete {name}"))
        return line.get("error") is not None

    def _begins_a_line(self, text: str) -> bool:
        """Whether text that ends anywhere is the beginning of a line of this run."""
        start = '{"id": '
        if whole := _ID.match(text):
            return _agree(text[whole.end():], f', "run": {json.dumps(self._run, ensure_ascii=False)}, ')
        rest = text.removeprefix(start)
        return _agree(text, start) and (rest == text or rest.startswith('"') or "null".startswith(rest))


def _agree(one: str, other: str) -> bool:
    """Whether they are the same as far as both go."""
    return one.startswith(other) or other.startswith(one)


def _foreign(where: str) -> UsageError:
    return UsageError(Problem("is no output of `predict`, and is not written over", where,
                              hint="give another --output"))


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    with _lock(path) as file:
        yield file


def _lock(path: Path) -> BinaryIO:
    """The file, opened to append, for this process alone."""
    file = path.open("ab+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UsageError(Problem("another process writes this file", str(path))) from None
    return file
