"""Whether exported students answer in other programs as they do here: plain transformers and llama.cpp.

    python benchmarks/bench_export.py RUN [--limit 60] [--numbers f16 q8_0]

RUN is the folder of a finished classification run, in the workspace it was made in. Every way generates
freely and greedily from the same prompts; `same` is the share of test items that get the student's own
label. llama.cpp is run through the package cyllama (`pip install --no-deps cyllama`, which brings its own
llama.cpp); where that is not installed, the rows say so. `tokens` is the share of prompts that llama.cpp cuts
into the same tokens as the student's tokenizer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from click import echo

from distillctl import api
from distillctl.context import Context
from distillctl.doctor import processor_name
from distillctl.export import export_run
from distillctl.select import requests_of
from distillctl.using import open_student

LONGEST = 10  # tokens of a generated label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=int, default=60, help="items of the test split")
    parser.add_argument("--numbers", nargs="+", default=["f16", "q8_0"])
    args = parser.parse_args()
    run = args.run.resolve()
    ctx = api.open_run(api.RunDir(run), api.Workspace(run.parents[2]))
    examples = ctx.examples("test")[:args.limit]
    requests = requests_of(ctx.task, examples)
    with open_student(ctx) as student:
        wanted = []
        for start in range(0, len(requests), student.predictor.max_batch):
            batch = requests[start:start + student.predictor.max_batch]
            wanted += [student.read(one).value for one in asyncio.run(student.predictor.answer(batch))]
    echo(f"{len(requests)} test items of {ctx.rundir.name}, {processor_name()}, {os.cpu_count()} cores\n")
    echo("| | same | right | tokens | ms/example |")
    echo("|---|---|---|---|---|")
    tell("the student itself, labels scored", wanted, wanted, examples)
    prompts = [one.messages for one in requests]
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        export_run(ctx, "merged", merged, verify=False)
        for dtype in ("float32", "bfloat16"):
            texts, seconds = transformers_answers(merged, dtype, prompts)
            tell(f"merged, plain transformers in {dtype}", values(ctx, texts), wanted, examples, "", seconds)
        for numbers in args.numbers:
            file = Path(folder) / numbers
            export_run(ctx, "gguf", file, numbers=numbers, verify=False)
            name = f"GGUF {numbers}, llama.cpp"
            try:
                texts, alike, seconds = llama_answers(file / "model.gguf", merged, prompts)
            except ImportError as error:
                echo(f"| {name} | not run: {error} | | | |")
                continue
            tell(name, values(ctx, texts), wanted, examples, f"{alike / len(prompts):.0%}", seconds)


def tell(name: str, found: list[Any], wanted: list[Any], examples: list[Any], tokens: str = "",
         seconds: float | None = None) -> None:
    same = sum(a == b for a, b in zip(found, wanted, strict=True)) / len(found)
    right = sum(a == example.expected for a, example in zip(found, examples, strict=True)) / len(found)
    each = f"{1e3 * seconds / len(found):.0f}" if seconds else ""
    echo(f"| {name} | {same:.1%} | {right:.1%} | {tokens} | {each} |")


def values(ctx: Context, texts: list[str]) -> list[Any]:
    return [ctx.task.parse(text).value for text in texts]


def transformers_answers(folder: Path, dtype: str, prompts: list[Any]) -> tuple[list[str], float]:
    """What a user of transformers alone gets: the tokenizer's chat template, and generate."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    started = time.perf_counter()
    texts = []
    for messages in prompts:
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                               return_dict=True)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=LONGEST)
        texts.append(tokenizer.decode(made[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
    return texts, time.perf_counter() - started


def llama_answers(file: Path, folder: Path, prompts: list[Any]) -> tuple[list[str], int, float]:
    """What llama.cpp answers, how many prompts it cuts as the tokenizer in `folder` does, and seconds."""
    from cyllama import LLM, GenerationConfig
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GenerationConfig(max_tokens=LONGEST, temperature=0.0, repeat_penalty=1.0, add_bos=False,
                              parse_special=True)
    texts, alike, seconds = [], 0, 0.0
    with LLM(str(file), config=config, verbose=False) as model:
        for messages in prompts:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            alike += list(model.vocab.tokenize(prompt, False, True)) == tokenizer(
                prompt, add_special_tokens=False).input_ids
            started = time.perf_counter()
            texts.append(str(model(prompt, config)))
            seconds += time.perf_counter() - started
    return texts, alike, seconds


if __name__ == "__main__":
    main()
