"""Group commit: rows that arrive while one commit is on its way are written together by the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Recorder(Generic[Row]):
    """Gives rows to `write`, which runs in a thread and commits what it is given.

    A flush to disk takes milliseconds, during which many answers can arrive; written one by one they
    would wait for each other.
    """

    def __init__(self, write: Callable[[list[Row]], None]) -> None:
        self._write = write
        self._waiting: list[tuple[Sequence[Row], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def record(self, rows: Sequence[Row]) -> None:
        """Returns when `rows` are written; raises what `write` raised."""
        if not rows:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        await future

    async def drained(self) -> None:
        """Wait until everything that was given is written, or was refused."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _drain(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            error: Exception | None = None
            try:
                await asyncio.to_thread(self._write, [row for rows, _ in group for row in rows])
            except Exception as caught:
                error = caught
            for _, future in group:
                if future.done():
                    continue  # whoever waited was cancelled
                if error:
                    future.set_exception(error)
                else:
                    future.set_result(None)
