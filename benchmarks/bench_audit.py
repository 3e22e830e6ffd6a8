"""How long, and in how much memory, a data set is read, split without leaks and audited.

    python benchmarks/bench_audit.py --rows 1000000

Rows are short questions with a label: a third made from a few templates, a third of random words, a third
with a conversation before it; one in fifty repeats an earlier input, one in fifty nearly does. The work is
done in a child process with one thread; the peak memory is the child's (resident set).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

LABELS = ["code", "docs", "hybrid", "skip"]
TEMPLATES = ["where in the code is {0} set up before {1} is called for the first time",
             "show me the page that says how {0} is meant to be used together with {1}",
             "is there a difference between {0} and {1} when both run on one machine",
             "please tell me which release of {0} was the first that worked with {1}"]


def questions(rows: int) -> Iterator[dict[str, str]]:
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(30_000)]
    recent: list[dict[str, str]] = []
    for _ in range(rows):
        kind = rng.random()
        if recent and kind < 0.04:
            row = dict(rng.choice(recent))
            if kind < 0.02:
                row["question"] += " please"
        elif kind < 0.36:
            row = {"question": rng.choice(TEMPLATES).format(*rng.choices(words, k=2))}
        else:
            row = {"question": " ".join(rng.choices(words, k=rng.randint(6, 16)))}
            if kind > 0.68:
                row["conversation_context"] = "User: " + " ".join(rng.choices(words, k=12))
        row.setdefault("conversation_context", "")
        row.setdefault("label", rng.choice(LABELS))
        recent = [*recent[-999:], row] if len(recent) < 1000 or rng.random() < 0.01 else recent
        yield row


def work(path: Path) -> dict[str, float]:
    """Read, split and audit `path`; seconds of each, and rows."""
    from distillctl.data.audit import audit
    from distillctl.data.read import read_examples
    from distillctl.data.split import split_by_shares
    from distillctl.recipe.models import ClassificationSpec, DataSpec, SplitShares
    from distillctl.task import build_task

    task = build_task(ClassificationSpec(
        kind="classification", labels=LABELS,
        prompt="{% if conversation_context %}{{ conversation_context }}\n{% endif %}{{ question }}"))
    spec = DataSpec(examples=path.name, expected="label")
    times = [time.perf_counter()]
    read = read_examples(path, spec, task)
    times.append(time.perf_counter())
    splits, warnings = split_by_shares(read.examples, spec, SplitShares(), task)
    times.append(time.perf_counter())
    found = audit(splits, task, spec)
    times.append(time.perf_counter())
    steps = dict(zip(("read", "split", "audit"), (b - a for a, b in pairwise(times)), strict=True))
    return {"rows": found.rows, "repeated_inputs": found.repeated_inputs, "warnings": warnings, **steps}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        sys.stdout.write(json.dumps(work(given.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w") as file:
            for row in questions(given.rows):
                file.write(json.dumps(row) + "\n")
        size = path.stat().st_size / 2**20
        environment = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        child = subprocess.run([sys.executable, __file__, "--child", path], env=environment,
                               stdout=subprocess.PIPE, check=True, text=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = usage.ru_maxrss / 2**20  # KiB on Linux
    found = json.loads(child.stdout)
    total = sum(found[step] for step in ("read", "split", "audit"))
    sys.stdout.write(
        f"{found['rows']:,} rows ({size:.0f} MiB): {total:.1f} s "
        f"(read {found['read']:.1f}, split {found['split']:.1f}, audit {found['audit']:.1f}), "
        f"{usage.ru_utime + usage.ru_stime:.1f} s of processor time, peak {peak:.2f} GiB\n")
    sys.stdout.writelines(f"  {warning}\n" for warning in found["warnings"])


if __name__ == "__main__":
    main()
