"""Requests that wait together are answered together.

A model on this machine has one worker, which takes whatever is waiting whenever it is free: nobody waits
for a batch to fill. A student on the network is asked for one answer at a time, by several workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from itertools import islice

from distillctl.errors import BudgetError, DistillctlError
from distillctl.serve.wire import Refused
from distillctl.types import Answer, Request
from distillctl.using import Student

log = logging.getLogger("distillctl.serve")


class Batcher:
    """Answers requests with one student. on_batch: told how many went together.

    most: requests that may be under way at once; one more is refused with 429.
    """

    def __init__(self, student: Student, most: int, on_batch: Callable[[int], None]) -> None:
        self._student = student
        self._most = most
        self._on_batch = on_batch
        self._waiting: dict[asyncio.Future[Answer], Request] = {}  # in the order in which they came
        self._came = asyncio.Event()
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
        for answer in self._waiting:
            answer.cancel()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places of requests under way. Raises Refused where all are taken."""
        if self.under_way >= self._most:
            raise Refused(429, f"{self._most} requests are under way, and no more are taken.",
                          "rate_limit_exceeded", headers={"Retry-After": "1"})
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def answer(self, request: Request) -> Answer:
        """The answer, which may be a failed one. Raises Refused. Who is cancelled waits no longer."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting[answer] = request
        self._came.set()
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    async def _work(self) -> None:
        # Half of what it could take: while it is computed, those answered before it ask again.
        size = 1 if self._student.paid else max(1, self._student.predictor.max_batch // 2)
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            await asyncio.sleep(0)  # those that came in the same moment
            batch = {one: self._waiting.pop(one) for one in list(islice(self._waiting, size))}
            batch = {one: request for one, request in batch.items() if not one.done()}  # the client hung up
            if batch:
                self._on_batch(len(batch))
                await self._answer(batch)

    async def _answer(self, batch: dict[asyncio.Future[Answer], Request]) -> None:
        try:
            answers = await self._student.answer(list(batch.values()))
        except asyncio.CancelledError:
            for one in batch:
                one.cancel()
            raise
        except Exception as error:
            log.exception("a batch of %d was not answered", len(batch))
            for one in batch:
                with contextlib.suppress(asyncio.InvalidStateError):
                    one.set_exception(refusal(error))
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.done():
                one.set_result(answer)


def refusal(error: Exception) -> Refused:
    """What a client is told of an error; the log says the rest."""
    if isinstance(error, BudgetError):
        return Refused(429, "The run's budget is used up.", "insufficient_quota")
    if isinstance(error, DistillctlError):
        return Refused(502, "The model cannot be asked just now; the server's log says why.")
    return Refused(500, "The model failed; the server's log says how.")
