"""Training time and memory on a bounded task: TRL as it comes, TRL tuned, and distillctl.

    python benchmarks/bench_train.py [--steps 6] [--batch 16] [--prefix 0 400] [--recipe recipes/routing.yaml]

All train the same adapter (rank, learning rate, seed of the recipe) on the same rows in the same order, so
that their losses can be compared step by step. Each runs in a process of its own; memory is the peak
resident set of that process, time the median of the steps after the first. Run it on an idle machine: where
other programs compute too, only the processor time (of all cores together) can be compared. A table for
each --prefix: worked examples before the prompt until it begins with that many tokens on every row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from click import echo
from distillctl_local.process import DEFAULTS
from distillctl_local.settings import LocalSettings

from distillctl.data import load_splits
from distillctl.doctor import processor_name
from distillctl.recipe.load import load_recipe
from distillctl.store.files import write_json, write_jsonl
from distillctl.task import Task
from distillctl.types import Example, Message

WAYS = {
    "trl": "TRL SFTTrainer, default settings",
    "trl-tuned": "TRL SFTTrainer, bf16 weights, no checkpointing, micro-batches of 4",
    "whole": "distillctl, shared prefix off",
    "shared": "distillctl",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/routing.yaml"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prefix", type=int, nargs="+", default=[0],
                        help="tokens that every prompt shall begin with; several make several tables")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train_with_trl(args.child[0], Path(args.child[1]))
        return
    echo(f"{args.steps} steps of {args.batch} rows on {processor_name()}, {os.cpu_count()} cores, "
         f"load average {os.getloadavg()[0]:.1f} before")
    for prefix in args.prefix:
        with tempfile.TemporaryDirectory() as folder:
            rows = prepare(args, prefix, Path(folder))
            behind = f", prompts behind {prefix} more tokens" if prefix else ""
            echo(f"\n{rows} rows of {args.recipe}{behind}\n")
            compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Train in every way and print a table, the first way being what the others are compared with."""
    echo("| | s/step | processor s/step | examples/s | peak memory | loss, first to last step | speed |")
    echo("|---|---|---|---|---|---|---|")
    first = None
    for way in args.ways:
        cost = measure(way, folder)
        first = first or cost.seconds
        echo(f"| {WAYS[way]} | {cost.seconds:.2f} | {cost.processor_s:.2f} | {args.batch / cost.seconds:.1f} "
             f"| {cost.peak_bytes / 2**30:.1f} GiB | {' '.join(f'{loss:.3f}' for loss in cost.losses)} "
             f"| {first / cost.seconds:.1f}× |")


def prepare(args: argparse.Namespace, prefix: int, folder: Path) -> int:
    """Write the job that all ways train: the gold answers of the recipe's training rows."""
    loaded = load_recipe(args.recipe)
    splits, _ = load_splits(loaded.recipe.data, loaded.task, loaded.resolve)
    task = loaded.task
    before = shared_text(args.recipe, prefix, task, splits["train"])
    rows = [{"id": example.id, "messages": behind(before, example, task),
             "completion": task.target(example.expected), "source": example.source}
            for example in splits["train"]]
    write_jsonl(folder / "train.jsonl", rows)
    train = loaded.recipe.train.model_dump(mode="json") | {
        "epochs": None, "max_steps": args.steps, "batch_size": args.batch}
    write_json(folder / "job.json", {
        "name": "bench", "model": loaded.recipe.student.model, "revision": None, "rows": len(rows),
        "task": loaded.recipe.task.model_dump(mode="json"), "train": train})
    return len(rows)


def shared_text(recipe: Path, prefix: int, task: Task, examples: Sequence[Example]) -> str:
    """Worked examples, as many as make `prefix` tokens."""
    if not prefix:
        return ""
    from distillctl_local.models import load_tokenizer

    tokenizer = load_tokenizer(load_recipe(recipe).recipe.student.model)
    text = ""
    for example in examples:
        if len(tokenizer(text).input_ids) >= prefix:
            break
        first = next(value for value in example.fields.values() if isinstance(value, str) and value)
        text += f"{first} -> {task.target(example.expected)}\n"
    return text + "\n"


def behind(before: str, item: Example, task: Task) -> list[Message]:
    """An item's prompt with a text before it."""
    *system, user = task.render(item.fields, item.source)
    return [*system, {**user, "content": before + user["content"]}]


@dataclass(frozen=True)
class Cost:
    """Of one step, the median; processor_s is that of all cores together. losses: of every step."""

    seconds: float
    processor_s: float
    peak_bytes: int
    losses: list[float]


def measure(way: str, job: Path) -> Cost:
    """Train in one way, in a process of its own."""
    folder = job / way
    folder.mkdir()
    for name in ("train.jsonl", "job.json"):
        (folder / name).write_bytes((job / name).read_bytes())
    if way.startswith("trl"):
        command = [sys.executable, __file__, "--child", way, str(folder)]
    else:
        settings = LocalSettings(shared_prefix="on" if way == "shared" else "off", checkpoint_steps=100_000,
                                 learn="tokens")
        described = json.loads((folder / "job.json").read_text())
        write_json(folder / "job.json", described | {"settings": settings.model_dump(mode="json")})
        command = [sys.executable, "-m", "distillctl_local.trainer", str(folder)]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env={
            **os.environ, **({} if way.startswith("trl") else DEFAULTS)})  # as each comes
        used: dict[int, float] = {}  # processor seconds at the moment when a step was seen to be done
        while True:
            processor_s = processor_seconds(child.pid)
            used.setdefault(len(step_events(folder)), processor_s)
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.02)
        child.returncode = status
    if status:
        raise SystemExit(f"{way} failed:\n{(folder / 'log').read_text()[-2000:]}")
    steps = step_events(folder)
    return Cost(statistics.median(b["time"] - a["time"] for a, b in pairwise(steps)),
                statistics.median(used[b] - used[a] for a, b in pairwise(sorted(used)) if a and b == a + 1),
                usage.ru_maxrss * 1024, [row["data"]["loss"] for row in steps])


def step_events(folder: Path) -> list[dict]:
    path = folder / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [row for row in map(json.loads, lines) if "loss" in row["data"]]


def processor_seconds(pid: int) -> float:
    """User and system time of a process that was not waited for yet."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train_with_trl(way: str, folder: Path) -> None:
    """TRL's own trainer on the same tokens; one line per step, as distillctl's trainer writes them."""
    import torch
    from datasets import Dataset
    from distillctl_local.data import encode_rows
    from distillctl_local.encode import Encoder
    from distillctl_local.models import load_base, load_tokenizer
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    job = json.loads((folder / "job.json").read_text())
    train = job["train"]
    tuned = way == "trl-tuned"
    tokenizer = load_tokenizer(job["model"])
    model = load_base(job["model"], dtype=torch.bfloat16 if tuned else torch.float32, device="cpu")
    rows = encode_rows(folder / "train.jsonl", Encoder(tokenizer), train["max_length"])
    data = Dataset.from_dict({
        "input_ids": [row.ids for row in rows],
        "labels": [[-100] * (len(row.ids) - len(row.completion)) + row.completion for row in rows]})
    settings = {"gradient_checkpointing": False, "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": train["batch_size"] // 4} if tuned else {
                    "per_device_train_batch_size": train["batch_size"]}
    config = SFTConfig(
        output_dir=str(folder / "out"), max_steps=train["max_steps"], learning_rate=train["learning_rate"],
        lr_scheduler_type=train["schedule"], warmup_steps=train["warmup"], seed=train["seed"],
        data_seed=train["seed"], logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, **settings)

    class Write(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_) -> None:
            if "loss" in logs:
                with (folder / "events.jsonl").open("a") as file:
                    file.write(json.dumps({"time": time.time(), "data": {"loss": logs["loss"]}}) + "\n")

    SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Write()],
               peft_config=LoraConfig(r=train["lora"]["rank"], lora_alpha=train["lora"]["alpha"],
                                      target_modules="all-linear", task_type="CAUSAL_LM")).train()


if __name__ == "__main__":
    main()
