"""Evaluation speed on a bounded task: one `generate` call per example, as in many a tutorial, and distillctl.

    python benchmarks/bench_eval.py [RUN] [--limit 60] [--prefix 0 400] [--recipe recipes/routing.yaml]

RUN is the folder of a finished run; its student answers its recipe's test split, or the first --limit items.
Without one the untrained model of --recipe answers. All ways get the same prompt tokens. `same` is the share
of items on which a way's parsed answer is that of the first way; the loop in fp32 is the first, so that
nobody's answers are measured against rounding. Each way runs in a process of its own, as it comes: OpenMP's
threads wait awake in transformers' loop and asleep in distillctl. A table for each --prefix: worked examples
before the prompt until it begins with that many more tokens on every item. Run it on an idle machine; where
that cannot be had, the processor's time, of all threads together, is the steadier measure. On a GPU it says
nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench_train import behind, shared_text
from click import echo

from distillctl.backend import StudentRef
from distillctl.data import load_splits
from distillctl.doctor import processor_name
from distillctl.recipe.load import load_recipe
from distillctl.recipe.models import EvaluateSpec
from distillctl.store.files import read_json
from distillctl.task import Task
from distillctl.types import Example, Message, Request

WAYS = {
    "loop-fp32": "transformers + PEFT in fp32, one generate call per example",
    "loop": "transformers + PEFT, one generate call per example",
    "loop-batched": "transformers + PEFT, generate on padded batches of 16",
    "one": "distillctl, one at a time",
    "batch": "distillctl, in batches",
    "free": "distillctl, answers generated freely, in batches",
}
ANSWER = 10  # most tokens of a generated label
WARM = 3  # examples before the clock starts

Prompts = list[list[Message]]
Measured = tuple[list[str | None], float, float]  # answers, seconds, seconds of the processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/routing.yaml"))
    parser.add_argument("--limit", type=int, help="items of the test split; all")
    parser.add_argument("--prefix", type=int, nargs="+", default=[0],
                        help="tokens before every prompt; several make several tables")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    loaded = load_recipe(args.recipe)
    task = loaded.task
    splits, _ = load_splits(loaded.recipe.data, task, loaded.resolve)
    items = splits["test"][:args.limit]
    student = StudentRef("local", "model", loaded.recipe.student.model)
    if args.run:
        student = StudentRef.from_json(read_json(args.run / "student.json"))
    folder = args.run / "student" if args.run else Path()
    echo(f"{len(items)} test items of {args.recipe}, {student.kind} on {student.model}, "
         f"{processor_name()}, {os.cpu_count()} cores")
    for prefix in args.prefix:
        echo(f"\nprompts behind {prefix} more tokens\n" if prefix else "")
        before = shared_text(args.recipe, prefix, task, splits["train"])
        prompts = [behind(before, item, task) for item in items]
        measured = [apart(way, student, folder, args.recipe, prompts) for way in args.ways]
        compare(args.ways, measured, task, items)


def compare(ways: Sequence[str], measured: Sequence[Measured], task: Task, items: Sequence[Example]) -> None:
    """Print a table, the first way being what the others are compared with."""
    echo("| | ms/example | CPU ms/example | speed | by CPU time | same | right |")
    echo("|---|---|---|---|---|---|---|")
    first = None
    for way, (answers, seconds, cpu) in zip(ways, measured, strict=True):
        values = [task.parse(answer).value for answer in answers]
        first = first or (seconds, cpu, values)
        same = sum(a == b for a, b in zip(values, first[2], strict=True)) / len(items)
        right = sum(task.score(value, item.expected).correct
                    for value, item in zip(values, items, strict=True)) / len(items)
        echo(f"| {WAYS[way]} | {1e3 * seconds / len(items):.0f} | {1e3 * cpu / len(items):.0f} "
             f"| {first[0] / seconds:.1f}× | {first[1] / cpu:.1f}× | {same:.1%} | {right:.1%} |")


def apart(way: str, *given: Any) -> Measured:
    """`measure` in a process of its own, whose threads wait as they do in a program that works this way."""
    with ProcessPoolExecutor(1, get_context("spawn"), wait_as_usual, (way,)) as pool:
        return pool.submit(measure, way, *given).result()


def wait_as_usual(way: str) -> None:
    if not way.startswith("loop"):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `distillctl` has it


def measure(way: str, student: StudentRef, folder: Path, recipe: Path, prompts: Prompts) -> Measured:
    """What one way answers and how long it takes; loading and warming up are not counted."""
    if way.startswith("loop"):
        answer = tutorial(student, folder, batch=16 if way == "loop-batched" else 1,
                          dtype="float32" if way == "loop-fp32" else "auto")
        answer(prompts[:WARM])
        return timed(answer, prompts)
    from distillctl_local.predictor import open_local

    how = EvaluateSpec(generate=way == "free", max_tokens=ANSWER)
    with open_local(student, folder, load_recipe(recipe).task, how) as predictor:
        size = 1 if way == "one" else predictor.max_batch

        def answer(some: Prompts) -> list[str | None]:
            return asyncio.run(ask(predictor, some, size))

        answer(prompts[:WARM])
        return timed(answer, prompts)


def timed(answer: Callable[[Prompts], list[str | None]], prompts: Prompts) -> Measured:
    started, cpu = time.perf_counter(), time.process_time()
    answers = answer(prompts)
    return answers, time.perf_counter() - started, time.process_time() - cpu


async def ask(predictor: Any, prompts: Prompts, size: int) -> list[str | None]:
    requests = [Request(str(number), messages) for number, messages in enumerate(prompts)]
    answers = []
    for start in range(0, len(requests), size):
        answers += await predictor.answer(requests[start:start + size])
    return [answer.output for answer in answers]


def tutorial(student: StudentRef, folder: Path, batch: int,
             dtype: str) -> Callable[[Prompts], list[str | None]]:
    """The usual loop: load, add the adapter, encode, generate, decode. dtype: "auto" is the weights' own,
    bf16 as a rule; "float32" is what a trainer that was given a name loads."""
    import torch
    from distillctl_local.encode import Encoder
    from distillctl_local.models import load_base, load_tokenizer

    tokenizer = load_tokenizer(student.model)
    model = load_base(student.model, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    if student.kind == "adapter":
        model.load_adapter(str(folder / (student.path or ".")))
    encoder = Encoder(tokenizer)

    def answer(prompts: Prompts) -> list[str | None]:
        found = []
        for start in range(0, len(prompts), batch):
            ids = [encoder.prompt(messages) for messages in prompts[start:start + batch]]
            inputs = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
            inputs = inputs.to(model.device)
            with torch.inference_mode():
                outputs = model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False)
            found += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1]:],
                                            skip_special_tokens=True)
        return found

    return answer


if __name__ == "__main__":
    main()
