"""Requests that wait together are answered together.

A model on this machine has one worker, which takes whatever is waiting whenever it is free: nobody waits
for a batch to fill. A student on the network is asked for one answer at a time, by several workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from distillctl.errors import BudgetError, DistillctlError
from distillctl.serve.wire import Refused
from distillctl.types import Answer, Request
from distillctl.using import Student

log = logging.getLogger("distillctl.serve")


@dataclass(frozen=True)
class _Waiting:
    request: Request
    answer: asyncio.Future[Answer]


class Batcher:
    """Answers requests with one student. on_batch: told how many went together.

    most: requests that may wait or be answered at once; one more is refused with 429.
    """

    def __init__(self, student: Student, most: int, on_batch: Callable[[int], None]) -> None:
        self._student = student
        self._most = most
        self._on_batch = on_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self.under_way = 0

    def start(self) -> None:
        count = self._student.options.concurrency if self._student.paid else 1
        self._workers = [asyncio.create_task(self._work()) for _ in range(count)]

    async def stop(self) -> None:
        """End the workers; what still waits is refused."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait().answer.cancel()

    async def answer(self, request: Request) -> Answer:
        """The answer, which may be a failed one. Raises Refused."""
        if self.under_way >= self._most:
            raise Refused(429, f"{self._most} requests are under way, and no more are taken.",
                          "rate_limit_exceeded", headers={"Retry-After": "1"})
        self.under_way += 1
        try:
            waiting = _Waiting(request, asyncio.get_running_loop().create_future())
            self._queue.put_nowait(waiting)
            return await waiting.answer
        finally:
            self.under_way -= 1

    async def _work(self) -> None:
        # Half of what it could take: while it is computed, those answered before it ask again.
        size = 1 if self._student.paid else max(1, self._student.predictor.max_batch // 2)
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(0)  # those that came in the same moment
            while len(batch) < size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [waiting for waiting in batch if not waiting.answer.done()]  # the client hung up
            if batch:
                self._on_batch(len(batch))
                await self._answer(batch)

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._student.answer([waiting.request for waiting in batch])
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        except Exception as error:
            log.exception("a batch of %d was not answered", len(batch))
            for waiting in batch:
                with contextlib.suppress(asyncio.InvalidStateError):
                    waiting.answer.set_exception(refusal(error))
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


def refusal(error: Exception) -> Refused:
    """What a client is told of an error; the log says the rest."""
    if isinstance(error, BudgetError):
        return Refused(429, "The run's budget is used up.", "insufficient_quota")
    if isinstance(error, DistillctlError):
        return Refused(502, "The model cannot be asked just now; the server's log says why.")
    return Refused(500, "The model failed; the server's log says how.")
