"""What can be known before training: is the model here, do the rows fit, how much memory and time.

Light: no torch and no transformers, so that `plan` stays quick. Lengths are counted with the model's own
tokenizer where its file is at hand.

Memory, in bytes, for a base of N parameters in b bytes each and an adapter of A parameters in fp32 with
its gradient and Adam's two moments:

    N·b + 16·A + activations + 0.8 GiB for the libraries
    activations ≈ T · L · (14·h + 4·f) · b + 6 · S · V · 4

with T tokens computed at once, L layers of width h and feed-forward width f, S supervised tokens and V the
vocabulary.
"""

from __future__ import annotations

import os

from distillctl.backend import BackendEnv, Preflight, TrainJob
from distillctl.errors import Problem
from distillctl.recipe.models import TrainSpec
from distillctl.store.files import read_jsonl
from distillctl_local import models
from distillctl_local.hardware import cpu_computes_bf16, memory_available
from distillctl_local.models import ModelFacts
from distillctl_local.settings import LocalSettings

_LIBRARIES = 0.8 * 2**30
_FLOPS_PER_CORE = (50e9, 250e9)  # low and high, of this kind of work on a CPU core


def examine(job: TrainJob, model: str, settings: LocalSettings, env: BackendEnv) -> Preflight:
    """The preflight of a local job."""
    notes, problems, warnings = [], [], []
    if not models.is_at_hand(model):
        if env.offline:
            return Preflight(problems=(Problem("the model is not on this machine", field="student.model",
                                               value=model, hint="run without --offline once"),))
        notes.append(f"{model} will be downloaded from the Hugging Face Hub")
    facts = models.facts_at_hand(model)
    lengths = _lengths(job, model)
    if facts and lengths:
        limit = min(job.train.max_length, facts.context)
        problems += _too_long(job, lengths, limit)
    if facts is None:
        return Preflight(tuple(problems), tuple(warnings), tuple(notes), cost_usd=(0.0, 0.0))
    bytes_each = 2 if cpu_computes_bf16() and settings.precision != "fp32" else 4
    needed = memory_needed(facts, job.train, bytes_each, settings.micro_tokens)
    free = memory_available()
    notes.append(f"needs about {needed / 2**30:.1f} GiB of memory" + (
        f", {free / 2**30:.1f} GiB are free" if free else ""))
    if free and needed > free:
        problems.append(Problem(
            f"training needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free",
            field="student.model", value=model,
            hint="take a smaller student, lower backends.local.micro_tokens, or use a hosted backend"))
    duration = _duration(facts, job, lengths) if lengths else None
    return Preflight(tuple(problems), tuple(warnings), tuple(notes), (0.0, 0.0), duration)


def adapter_parameters(facts: ModelFacts, rank: int) -> int:
    """Parameters of a LoRA adapter on all linear layers."""
    attention = facts.head_dim * (facts.heads + facts.kv_heads) * 2 + 4 * facts.hidden_size
    feed_forward = 3 * (facts.hidden_size + facts.intermediate_size)
    return rank * facts.layers * (attention + feed_forward)


def memory_needed(facts: ModelFacts, train: TrainSpec, bytes_each: int, tokens: int) -> float:
    """Bytes at the peak of training, by the formula above."""
    tokens = min(tokens, train.batch_size * train.max_length)
    activations = tokens * facts.layers * (14 * facts.hidden_size + 4 * facts.intermediate_size) * bytes_each
    supervised = train.batch_size * 8
    return (facts.parameters * bytes_each + 16 * adapter_parameters(facts, train.lora.rank) + activations
            + 6 * supervised * facts.vocab * 4 + _LIBRARIES)


def _lengths(job: TrainJob, model: str) -> list[tuple[int, str]]:
    """Tokens and source of every row, empty where the tokenizer's file is not at hand."""
    path = models.tokenizer_file(model)
    if path is None:
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    texts, sources = [], []
    for row in read_jsonl(job.train_file):
        texts.append("\n".join(m["content"] for m in row["messages"]) + "\n" + row["completion"])
        sources.append(row["source"])
    frame = 40  # tokens of a chat template around one turn
    return [(len(found) + frame, source)
            for found, source in zip(tokenizer.encode_batch_fast(texts), sources, strict=True)]


def _too_long(job: TrainJob, lengths: list[tuple[int, str]], limit: int) -> list[Problem]:
    long = [(tokens, source) for tokens, source in lengths if tokens > limit]
    return [Problem(f"prompt and answer have about {tokens} tokens, the limit is {limit}",
                    where=source or None,
                    hint="shorten the row, or raise train.max_length; nothing is cut silently")
            for tokens, source in long[:10]]


def _duration(facts: ModelFacts, job: TrainJob, lengths: list[tuple[int, str]]) -> tuple[float, float]:
    """Seconds, from 4 operations a parameter and token (no weight gradients), and cores at a usual rate;
    between all of the prompt shared and none."""
    tokens = sum(count for count, _ in lengths)
    epochs = job.train.epochs or max(1, (job.train.max_steps or 1) * job.train.batch_size / max(1, job.rows))
    work = 4 * facts.parameters * tokens * epochs
    cores = os.cpu_count() or 1
    return 15 + work / 3 / (_FLOPS_PER_CORE[1] * cores), 20 + work / (_FLOPS_PER_CORE[0] * cores)


