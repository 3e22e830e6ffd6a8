"""Serving under load: many clients at once against one at a time, on the same server and the same prompts.

    python benchmarks/bench_serve.py RUN [--clients 64] [--requests 256] [--alone 40]

RUN is the folder of a finished run, in the workspace it was made in. Clients are threads' worth of the
official openai SDK in a process of its own, as they would be; the server is `distillctl serve`. Errors are
counted, not hidden. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import openai
from click import echo

from distillctl import api
from distillctl.doctor import processor_name
from distillctl.types import Message

KEY = "bench-serve-on-loopback"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256, help="by all clients together")
    parser.add_argument("--alone", type=int, default=40, help="requests one at a time")
    args = parser.parse_args()
    workspace = args.run.resolve().parents[2]
    ctx = api.open_run(api.RunDir(args.run.resolve()), api.Workspace(workspace))
    prompts = [ctx.task.render(example.fields) for example in ctx.examples("test")]
    server = subprocess.Popen(
        [sys.executable, "-m", "distillctl.cli.main", "serve", str(args.run.resolve()), "--workspace",
         str(workspace), "--port", "0", "--api-key-env", "BENCH_KEY"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "BENCH_KEY": KEY, "PYTHONUNBUFFERED": "1"})
    try:
        url = server.stdout.readline().split(" at ")[1].split()[0]
        asyncio.run(measure(url, ctx.recipe.name, prompts, args))
    finally:
        server.terminate()
        server.wait()


async def measure(url: str, model: str, prompts: list[list[Message]], args: argparse.Namespace) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=300) as client:
        await load(client, model, prompts[:4], 1)  # warm
        alone = await load(client, model, list(islice(cycle(prompts), args.alone)), 1)
        together = await load(client, model, list(islice(cycle(prompts), args.requests)), args.clients)
    echo(f"{processor_name()}, {os.cpu_count()} cores\n")
    echo("| clients | requests | errors | answers/s | p50 ms | p95 ms | ratio |")
    echo("|---|---|---|---|---|---|---|")
    for clients, (rate, times, errors) in ((1, alone), (args.clients, together)):
        ordered = sorted(times)
        p50, p95 = (1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
        echo(f"| {clients} | {len(times) + errors} | {errors} | {rate:.1f} | {p50:.0f} | {p95:.0f} "
            f"| {rate / alone[0]:.1f}× |")


async def load(client: openai.AsyncOpenAI, model: str, prompts: list[list[Message]],
               clients: int) -> tuple[float, list[float], int]:
    """Answers per second, seconds of each, and errors. Each client sends its next request when it has its
    answer."""
    waiting, times, errors = iter(prompts), [], 0

    async def one() -> None:
        nonlocal errors
        for messages in waiting:
            started = time.perf_counter()
            try:
                await client.chat.completions.create(model=model, messages=messages)
            except openai.OpenAIError:
                errors += 1
            else:
                times.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return len(times) / (time.perf_counter() - started), times, errors


if __name__ == "__main__":
    main()
