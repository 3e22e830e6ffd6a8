"""What can be known before training: is the model here, do the rows fit, how much memory, disk and time.

Light: no torch and no transformers, so that `plan` stays quick. Lengths are counted with the model's own
tokenizer where its file is at hand, the chat template's tokens estimated; else by the words of the text.

Memory, in bytes, for a base whose linear layers have N numbers of b bytes each and whose other M numbers
(embeddings) have c bytes, an adapter of A parameters in fp32 with its gradient and Adam's two moments, T
tokens computed at once, L layers of width h and feed-forward width f with a heads, K pairs of tokens of
which one attends to the other, S supervised tokens among the T and a vocabulary V:

    N·b + M·c + 16·A + L·(T·(16·h·c + 16·h + 4·f·c) + 2·K·a·c) + 12·S·V + 1 GiB for the libraries

The 16·h without c are the norms, in fp32. Attention on a GPU keeps nothing a pair. With gradient
checkpointing (Unsloth) every layer keeps its input alone and one is computed anew: T·L·h·c + T·(16·h·c + 16·h
+ 4·f·c), and Unsloth computes the loss in pieces that fit into what is free: S is 64 there, however long the
answers are. In 4 bits b is 0.53, because every 64 numbers share a scale. Where every weight is trained, 16·(N
+ M) stand in the place of N·b + M·c + 16·A, c is 4, and 8·V·h come to it: the embedding's gradient is made
beside the one that it is added to, once for the input and once for the head. Where D devices divide the base,
N·b is times 1/D + 2/L. Where a processor computes W batches side by side, 4·W·A come to it, each one's
gradients. Where the adapter sits on some layers alone, L is their number and one more, because those below
are computed one after the other, and what they made of all R tokens comes to it, R·h·c. A test holds measured
peaks against it.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

from distillctl.backend import BackendEnv, Preflight, TrainJob
from distillctl.errors import Problem, UsageError
from distillctl.recipe.models import DEFAULT_EPOCHS, TrainSpec
from distillctl.store.files import read_jsonl
from distillctl_local import devices, engines, full, models, shard, tracking, unsloth_engine
from distillctl_local.data import Row
from distillctl_local.division import workers
from distillctl_local.facts import ModelFacts, layers_below
from distillctl_local.hardware import (
    cores,
    cpu_computes_bf16,
    gpu_computes_bf16,
    gpu_memory_available,
    memory_available,
)
from distillctl_local.settings import LocalSettings
from distillctl_local.sharing import (
    bytes_below,
    choose_prefixes,
    dropout_of,
    expected_ratio,
    rows_of_a_device,
    share_prefixes,
    tokens_per_step,
)

FRAME = 30  # tokens of a chat template around a prompt, about
_LIBRARIES = 2**30
_PIECE = 64  # tokens whose loss Unsloth computes at once, at least
_FLOPS_PER_CORE = {2: (50e9, 250e9), 4: (20e9, 90e9)}  # low and high, by bytes of a number
_START_S = (10.0, 40.0)  # imports, loading, encoding


def examine(job: TrainJob, model: str, settings: LocalSettings, env: BackendEnv) -> Preflight:
    """The preflight of a local job."""
    here = models.is_at_hand(model, job.revision)
    if not here and env.offline:
        return Preflight(problems=(Problem("the model is not on this machine", field="student.model",
                                           value=model, hint="run once without --offline"),))
    on_gpu = devices.on_gpu(settings)
    whole = job.train.lora is None
    fast = gpu_computes_bf16(settings.devices) if on_gpu else cpu_computes_bf16()
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and fast)  # as hardware.choose
    notes: list[str] = []
    problems = tracking.problems(settings.report_to, offline=env.offline) + devices.problems(settings)
    if receivers := tracking.hosts(settings.report_to):
        notes.append(f"the training curve and the settings go to {', '.join(receivers)}")
    problems += full.problems(job.train, settings) + shard.problems(settings, job.train)
    warnings = devices.warnings(settings, job.train)
    warnings += [said] if (said := job.train.rate_warning) else []
    if settings.bits in (4, 8) and settings.engine != "unsloth" and not whole:
        problems += _quantisation_problems(settings, on_gpu)
    if settings.engine == "unsloth" and not whole:
        problems += engines.why_not_unsloth(settings)
    if job.revision and (model in models.ALIASES or Path(model).is_dir()):
        problems.append(Problem("only a model on the Hub has revisions", field="student.revision",
                                value=job.revision, hint="leave it out"))
    if not here:
        notes.append(f"{model} will be downloaded from the Hugging Face Hub")
    if settings.watches and not (job.dev_file and job.dev_file.exists() and job.dev_file.stat().st_size):
        problems.append(Problem("there is no dev split to watch", field="backends.local",
                                hint="give the dev split a share, or leave out `keep` and `patience`"))
    facts = models.facts_at_hand(model, job.revision)
    rows, counted = _rows(job, model)
    if not rows:
        problems.append(Problem("there are no rows to learn from", field="data.examples"))
    if facts is None or not rows:
        return Preflight(tuple(problems), tuple(warnings), tuple(notes), (0.0, 0.0))
    try:
        below = layers_below(facts, settings.layers)
    except UsageError as error:
        return Preflight((*problems, *error.problems), tuple(warnings), tuple(notes), (0.0, 0.0))
    problems += _target_problems(job, model)
    lengths = sorted(len(row.ids) for row in rows)
    limit = min(job.train.max_length, facts.context)
    notes.append(f"rows of about {lengths[0]} to {lengths[-1]} tokens, half of them up to "
                 f"{lengths[len(lengths) // 2]}; the limit is {limit}")
    if counted:
        problems += _too_long(rows, limit)
    ratio = _ratio(rows, job.train, settings)
    engine, why = engines.choose_engine(settings, job.train, ratio)
    width = 2 if engine == "unsloth" or (bf16 and not whole) else 4
    shared = None
    if engine == "peft":
        try:
            rows, shared = choose_prefixes(rows, facts, job.train, settings)
        except UsageError as error:
            problems += error.problems
    notes.insert(0, f"{'Unsloth' if engine == 'unsloth' else 'transformers, PEFT and TRL'} on "
                    f"{devices.in_words(settings)} ({why}), {_precisions(settings, engine, width, whole)}")
    notes += [shared] if shared else []
    if facts.linear_attention:
        notes.append(f"the student is asked prompt by prompt, which is slower: {facts.family} has layers "
                     "that keep a state instead of keys and values")
    memory = Memory(facts, job.train, width, settings.bits or (4 if engine == "unsloth" else None),
                    settings.devices if settings.shard else 1,
                    1 if on_gpu or settings.shard or dropout_of(job.train) else _side_by_side(rows, settings),
                    settings.layers)
    needed = (memory.checkpointed(unsloth_engine.ROWS_AT_ONCE * lengths[-1]) if engine == "unsloth"
              else memory.kept(*_at_once(rows, job.train, settings, on_gpu)))
    kept = bytes_below(rows, facts, settings, width)
    if below:
        notes.append(f"the adapter sits on the upper {settings.layers} of {facts.layers} layers; those below "
                     + (f"are computed once, {kept / 2**20:.0f} MiB are kept" if kept else
                        f"are computed at every step: {_why_not_kept(facts, settings)}"))
    needed += kept
    needed *= 1 if on_gpu else settings.devices
    problems += _memory_problems(needed, model, on_gpu, whole, settings.devices)
    notes.append(f"needs about {needed / 2**30:.1f} GiB of {'GPU memory' if on_gpu else 'memory'}"
                 + (" on each" if on_gpu and settings.devices > 1 else ""))
    if settings.shard and on_gpu:
        host = settings.devices * facts.parameters * width
        notes.append(f"the processes load the base into the host's memory first, {host / 2**30:.1f} GiB")
        problems += _memory_problems(host, model, False, whole, 1)
    if whole:
        notes.append(f"the student is {4 * facts.parameters / 2**30:.2f} GiB on disk, its checkpoints up to "
                     f"{_disk(facts, job.train, settings) / 2**30:.1f} GiB while it trains")
    problems += _disk_problems(_disk(facts, job.train, settings), env.workspace)
    duration = None if on_gpu else _duration(facts, job, rows, width, settings)
    return Preflight(tuple(problems), tuple(warnings), tuple(notes), (0.0, 0.0), duration)


def _precisions(settings: LocalSettings, engine: str, width: int, whole: bool) -> str:
    """What is kept and computed in what, in words."""
    if whole:
        return "every weight trained, in fp32"
    base = {4: "4 bits", 8: "8 bits"}.get(settings.bits or (4 if engine == "unsloth" else 0),
                                          "bf16" if width == 2 else "fp32")
    return f"the base in {base}, the adapter in fp32"


def sharing_ratio(job: TrainJob, model: str, settings: LocalSettings) -> float | None:
    """Tokens of a step without sharing what prompts begin with, for each with it; None if not to be known."""
    if settings.engine != "auto" or models.facts_at_hand(model, job.revision) is None:
        return None
    return _ratio(_rows(job, model)[0], job.train, settings)


def _ratio(rows: Sequence[Row], train: TrainSpec, settings: LocalSettings) -> float:
    if dropout_of(train):
        return 1.0
    batch_size = rows_of_a_device(train, settings, len(rows))
    return expected_ratio(share_prefixes(rows, batch_size), batch_size)


def rows_too_long(job: TrainJob, model: str) -> list[Problem]:
    """Rows that a model which is on this machine could not be trained on, wherever it will be trained."""
    facts = models.facts_at_hand(model, job.revision)
    if facts is None:
        return []
    rows, counted = _rows(job, model)
    return _too_long(rows, min(job.train.max_length, facts.context)) if counted else []


def linear_parameters(facts: ModelFacts) -> int:
    """Parameters of the linear layers that an adapter sits on."""
    query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    return facts.layers * facts.hidden_size * (2 * query + 2 * key + 3 * facts.intermediate_size)


def adapter_parameters(facts: ModelFacts, rank: int, layers: int | None = None) -> int:
    """Parameters of a LoRA adapter on all linear layers of a layer's usual seven, on so many layers; None:
    all."""
    query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    attention = 2 * (facts.hidden_size + query) + 2 * (facts.hidden_size + key)
    return rank * (layers or facts.layers) * (attention + 3 * (facts.hidden_size + facts.intermediate_size))


def _why_not_kept(facts: ModelFacts, settings: LocalSettings) -> str:
    if settings.devices > 1:
        return "each device has other rows in each"
    if facts.shares_states:
        return "those above attend to their keys and values"
    return "all they make of the rows is too much to keep"


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training, by the formula above. width: bytes of a number of the base that is not
    quantised, 4 where every weight is trained; bits: of its linear layers where it is; parts: how many
    devices they are divided among; side_by_side: batches; adapted: layers, None: all."""

    facts: ModelFacts
    train: TrainSpec
    width: int
    bits: int | None = None
    parts: int = 1
    side_by_side: int = 1
    adapted: int | None = None

    def kept(self, tokens: float, pairs: float = 0, supervised: int = 0) -> float:
        """With all activations of `tokens` tokens kept for the backward pass, of which so many are learnt;
        pairs: see above."""
        scores = 2 * pairs * self.facts.heads * self.width
        layers = min(self.facts.layers, (self.adapted or self.facts.layers) + 1)
        return self._fixed(supervised) + layers * (tokens * self._layer() + scores)

    def checkpointed(self, tokens: float) -> float:
        """With gradient checkpointing."""
        facts = self.facts
        return self._fixed(_PIECE) + tokens * (facts.layers * facts.hidden_size * self.width + self._layer())

    def _layer(self) -> float:
        hidden, inner = self.facts.hidden_size, self.facts.intermediate_size
        return 16 * hidden * (self.width + 1) + 4 * inner * self.width

    def _fixed(self, supervised: int) -> float:
        return self._weights() + 12 * supervised * self.facts.vocab + _LIBRARIES

    def _weights(self) -> float:
        """What is kept from step to step, with the gradients."""
        facts = self.facts
        if self.train.lora is None:
            return 16 * facts.parameters + 8 * facts.vocab * facts.hidden_size
        linear = min(linear_parameters(facts), facts.parameters)
        weights = linear * {4: 0.53, 8: 1.0}.get(self.bits, self.width)
        if self.parts > 1:  # two layers are whole: one that computes, one on its way
            weights *= min(1.0, 1 / self.parts + 2 / facts.layers)
        weights += (facts.parameters - linear) * self.width
        held = 4 * self.side_by_side if self.side_by_side > 1 else 0
        return weights + (16 + held) * adapter_parameters(facts, self.train.lora.rank, self.adapted)


def _rows(job: TrainJob, model: str) -> tuple[list[Row], bool]:
    """The rows as tokens, about, and whether they were counted with the model's tokenizer: by the text's
    words and marks where its file is not at hand."""
    path = models.tokenizer_file(model, job.revision)
    rows = list(read_jsonl(job.train_file))
    prompts = ["\n".join(message["content"] for message in row["messages"]) for row in rows]
    answers = [row["completion"] for row in rows]
    if path is None:
        prompt_ids, answer_ids = ([_words(text) for text in texts] for texts in (prompts, answers))
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        prompt_ids, answer_ids = ([found.ids for found in tokenizer.encode_batch_fast(texts)]
                                  for texts in (prompts, answers))
    return [Row([0] * FRAME + prompt + answer, answer or [0], row["source"])
            for row, prompt, answer in zip(rows, prompt_ids, answer_ids, strict=True)], path is not None


def _words(text: str) -> list[int]:
    """A number for every six letters of a word, and for every mark."""
    return [crc32(part.encode()) for part in re.findall(r"\w{1,6}|[^\w\s]", text)]


def _too_long(rows: Sequence[Row], limit: int) -> list[Problem]:
    long = [row for row in rows if len(row.ids) > limit]
    found = [Problem(f"prompt and answer have about {len(row.ids)} tokens, the limit is {limit}",
                     where=row.source or None,
                     hint="shorten the row, or raise train.max_length; nothing is cut silently")
             for row in long[:10]]
    return [*found, Problem(f"and {len(long) - 10} more rows are too long")] if len(long) > 10 else found


def _at_once(rows: Sequence[Row], train: TrainSpec, settings: LocalSettings,
             on_gpu: bool) -> tuple[int, int, int]:
    """Most tokens that are computed at once, a prefix included, the pairs that attention keeps, and how many
    of the tokens are learnt."""
    share = math.ceil(train.batch_size / settings.devices)
    longest = sorted(rows, key=lambda row: row.rest, reverse=True)[:share]
    tokens, pairs, supervised = 0, 0, 0
    for row in longest:
        if tokens and tokens + row.rest > settings.micro_tokens:
            break
        tokens += row.rest
        pairs += row.rest * (row.prefix + row.rest)
        supervised += len(row.completion)
    prefix = max(row.prefix for row in rows)
    return prefix + tokens, 0 if on_gpu else prefix**2 + pairs, supervised


def _side_by_side(rows: Sequence[Row], settings: LocalSettings) -> int:
    """How many batches a processor may compute at a time."""
    threads = (settings.threads or cores()) // settings.devices
    return workers(threads, max(row.rest for row in rows), settings.micro_tokens)


def _target_problems(job: TrainJob, model: str) -> list[Problem]:
    """Layers that `train.lora.targets` names and a model that is on this machine has not."""
    targets = (job.train.lora.targets if job.train.lora else None) or []
    found = models.layer_names(model, job.revision) if targets else None
    if not found:
        return []
    return [Problem("the model has no such layer", field="train.lora.targets", value=target,
                    hint=f"it has {', '.join(get_close_matches(target, found) or sorted(found)[:20])}")
            for target in targets if target.rsplit(".", 1)[-1] not in found]


def _memory_problems(needed: float, model: str, on_gpu: bool, whole: bool, count: int) -> list[Problem]:
    free = gpu_memory_available(count) if on_gpu else memory_available()
    if free is None or needed <= free:
        return []
    return [Problem(
        f"training needs about {needed / 2**30:.1f} GiB of {'GPU memory' if on_gpu else 'memory'}, "
        f"{free / 2**30:.1f} GiB are free",
        field="student.model", value=model,
        hint="take a smaller student, lower backends.local.micro_tokens, "
             + ("or train an adapter (train.lora.rank)" if whole else "or use a hosted backend"))]


def _quantisation_problems(settings: LocalSettings, on_gpu: bool) -> list[Problem]:
    if not on_gpu:
        return [Problem("quantised training is for NVIDIA GPUs: on a processor it would save memory but no "
                        "time", field="backends.local.bits", value=settings.bits,
                        hint="leave it out, or take a smaller student")]
    if find_spec("bitsandbytes") is None:
        return [Problem("needs bitsandbytes, not installed here", field="backends.local.bits",
                        value=settings.bits, hint="pip install 'distillctl[quantised]'")]
    return []


def _disk(facts: ModelFacts, train: TrainSpec, settings: LocalSettings) -> float:
    """Bytes of three checkpoints of what is trained and its optimiser, the third while it is written, of the
    result, and of two kept epochs where the best one is."""
    trained = (adapter_parameters(facts, train.lora.rank, settings.layers) if train.lora
               else facts.parameters)
    return (40 + 8 * settings.watches) * trained + 50 * 2**20


def _disk_problems(needed: float, workspace: Path) -> list[Problem]:
    there = next(folder for folder in (workspace, *workspace.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return []
    return [Problem(f"checkpoints need about {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free",
                    where=str(there), hint="make room there")]


def _duration(facts: ModelFacts, job: TrainJob, rows: Sequence[Row], width: int,
              settings: LocalSettings) -> tuple[float, float]:
    """Seconds, from 4 operations a parameter and token, 6 with the gradients of every weight, and the speed
    of a usual core, with nothing else running. Processes share the cores, and each computes the prefixes;
    more threads than cores are no faster, nor is bf16 where the processor does not multiply in it.
    Layers below an adapter are computed once, or forward alone."""
    train = job.train
    steps = train.max_steps or (train.epochs or DEFAULT_EPOCHS) * math.ceil(len(rows) / train.batch_size)
    share = rows_of_a_device(train, settings, len(rows))
    tokens = steps * settings.devices * tokens_per_step(rows, share, settings.shared_prefix == "frozen")
    upper = (settings.layers or facts.layers) / facts.layers
    once = len(rows) / (steps * train.batch_size) if bytes_below(rows, facts, settings, width) else 1.0
    each = 4 * upper + 2 * (1 - upper) * once if train.lora else 6
    work = each * facts.parameters * tokens
    threads = min(settings.threads or cores(), cores())
    low, high = (rate * threads for rate in _FLOPS_PER_CORE[width if cpu_computes_bf16() else 4])
    return _START_S[0] + work / high, _START_S[1] + work / low
