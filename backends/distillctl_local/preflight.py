"""What can be known before training: is the model here, do the rows fit, how much memory, disk and time.

Light: no torch and no transformers, so that `plan` stays quick. Lengths are counted with the model's own
tokenizer where its file is at hand, the chat template's tokens estimated.

Memory, in bytes, for a base of N parameters in b bytes each and an adapter of A parameters in fp32 with its
gradient and Adam's two moments, T tokens computed at once, L layers of width h and feed-forward width f,
S supervised tokens and a vocabulary V:

    N·b + 16·A + T·L·(10·h + 4·f)·b + 12·S·V + 1 GiB for the libraries
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from distillctl.backend import BackendEnv, Preflight, TrainJob
from distillctl.errors import Problem, UsageError
from distillctl.recipe.models import DEFAULT_EPOCHS, TrainSpec
from distillctl.store.files import read_jsonl
from distillctl_local import models
from distillctl_local.data import Row
from distillctl_local.hardware import cpu_computes_bf16, has_gpu, memory_available
from distillctl_local.models import ModelFacts
from distillctl_local.settings import LocalSettings
from distillctl_local.sharing import choose_prefixes, tokens_per_step

FRAME = 30  # tokens of a chat template around a prompt, about
_LIBRARIES = 2**30
_FLOPS_PER_CORE = {2: (50e9, 250e9), 4: (20e9, 90e9)}  # low and high, by bytes of a number
_START_S = (10.0, 40.0)  # imports, loading, encoding


def examine(job: TrainJob, model: str, settings: LocalSettings, env: BackendEnv) -> Preflight:
    """The preflight of a local job."""
    if not models.is_at_hand(model) and env.offline:
        return Preflight(problems=(Problem("the model is not on this machine", field="student.model",
                                           value=model, hint="run once without --offline"),))
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and has_gpu())
    width = 4 if settings.precision == "fp32" or not (on_gpu or cpu_computes_bf16()) else 2
    notes = [f"transformers, PEFT and TRL on {'the GPU' if on_gpu else 'the processor'}, the base in "
             f"{'bf16' if width == 2 else 'fp32'}, the adapter in fp32"]
    if not models.is_at_hand(model):
        notes.append(f"{model} will be downloaded from the Hugging Face Hub")
    facts = models.facts_at_hand(model)
    if facts is None:
        return Preflight(notes=tuple(notes), cost_usd=(0.0, 0.0))
    problems: list[Problem] = []
    if settings.watches and not (job.dev_file and job.dev_file.exists() and job.dev_file.stat().st_size):
        problems.append(Problem("there is no dev split to watch", field="backends.local",
                                hint="give the dev split a share, or leave out `keep` and `patience`"))
    rows = _rows(job, model)
    if rows:
        lengths = sorted(len(row.ids) for row in rows)
        notes.append(f"rows of about {lengths[0]} to {lengths[-1]} tokens, half of them up to "
                     f"{lengths[len(lengths) // 2]}; the limit is {min(job.train.max_length, facts.context)}")
        problems += _too_long(rows, min(job.train.max_length, facts.context))
        try:
            rows, note = choose_prefixes(rows, facts, job.train, settings)
            notes.append(note)
        except UsageError as error:
            problems += error.problems
    needed = memory_needed(facts, job.train, width, _at_once(rows, job.train, settings))
    problems += _memory_problems(needed, model, on_gpu)
    notes.append(f"needs about {needed / 2**30:.1f} GiB of {'GPU memory' if on_gpu else 'memory'}")
    problems += _disk_problems(facts, job.train, env.workspace)
    duration = None if on_gpu or not rows else _duration(facts, job, rows, width)
    return Preflight(tuple(problems), (), tuple(notes), (0.0, 0.0), duration)


def rows_too_long(job: TrainJob, model: str) -> list[Problem]:
    """Rows that a model which is on this machine could not be trained on, wherever it will be trained."""
    facts = models.facts_at_hand(model)
    if facts is None:
        return []
    return _too_long(_rows(job, model), min(job.train.max_length, facts.context))


def adapter_parameters(facts: ModelFacts, rank: int) -> int:
    """Parameters of a LoRA adapter on all linear layers of a layer's usual seven."""
    query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    attention = 2 * (facts.hidden_size + query) + 2 * (facts.hidden_size + key)
    return rank * facts.layers * (attention + 3 * (facts.hidden_size + facts.intermediate_size))


def memory_needed(facts: ModelFacts, train: TrainSpec, width: int, tokens: float) -> float:
    """Bytes at the peak of training, by the formula above; width: bytes of a number of the base."""
    activations = tokens * facts.layers * (10 * facts.hidden_size + 4 * facts.intermediate_size) * width
    supervised = train.batch_size * 4
    return (facts.parameters * width + 16 * adapter_parameters(facts, train.lora.rank) + activations
            + 12 * supervised * facts.vocab + _LIBRARIES)


def _rows(job: TrainJob, model: str) -> list[Row]:
    """The rows as tokens, about: none where the tokenizer's file is not at hand."""
    path = models.tokenizer_file(model)
    if path is None:
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    rows = list(read_jsonl(job.train_file))
    prompts = tokenizer.encode_batch_fast(
        ["\n".join(message["content"] for message in row["messages"]) for row in rows])
    answers = tokenizer.encode_batch_fast([row["completion"] for row in rows])
    return [Row([0] * FRAME + prompt.ids + answer.ids, answer.ids or [0], row["source"])
            for row, prompt, answer in zip(rows, prompts, answers, strict=True)]


def _too_long(rows: Sequence[Row], limit: int) -> list[Problem]:
    long = [row for row in rows if len(row.ids) > limit]
    found = [Problem(f"prompt and answer have about {len(row.ids)} tokens, the limit is {limit}",
                     where=row.source or None,
                     hint="shorten the row, or raise train.max_length; nothing is cut silently")
             for row in long[:10]]
    return [*found, Problem(f"and {len(long) - 10} more rows are too long")] if len(long) > 10 else found


def _at_once(rows: Sequence[Row], train: TrainSpec, settings: LocalSettings) -> float:
    """Most tokens that are computed at once, a prefix included."""
    if not rows:
        return min(settings.micro_tokens, train.batch_size * train.max_length)
    longest = sorted((row.rest for row in rows), reverse=True)[:train.batch_size]
    return max(row.prefix for row in rows) + max(longest[0], min(settings.micro_tokens, sum(longest)))


def _memory_problems(needed: float, model: str, on_gpu: bool) -> list[Problem]:
    free = memory_available()
    if on_gpu or free is None or needed <= free:
        return []
    return [Problem(
        f"training needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free",
        field="student.model", value=model,
        hint="take a smaller student, lower backends.local.micro_tokens, or use a hosted backend")]


def _disk_problems(facts: ModelFacts, train: TrainSpec, workspace: Path) -> list[Problem]:
    """Three checkpoints of adapter and optimiser, the third while it is written, and the result."""
    needed = 40 * adapter_parameters(facts, train.lora.rank) + 50 * 2**20
    there = next(folder for folder in (workspace, *workspace.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return []
    return [Problem(f"checkpoints need about {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free",
                    where=str(there), hint="make room there")]


def _duration(facts: ModelFacts, job: TrainJob, rows: Sequence[Row], width: int) -> tuple[float, float]:
    """Seconds, from 4 operations a parameter and token (no gradients of the base's weights) and the speed
    of a usual core, with nothing else running."""
    train = job.train
    steps = train.max_steps or (train.epochs or DEFAULT_EPOCHS) * math.ceil(len(rows) / train.batch_size)
    work = 4 * facts.parameters * steps * tokens_per_step(rows, min(train.batch_size, len(rows)))
    low, high = (rate * (os.cpu_count() or 1) for rate in _FLOPS_PER_CORE[width])
    return _START_S[0] + work / high, _START_S[1] + work / low
