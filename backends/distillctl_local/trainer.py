"""The trainer: a program of its own, started by the backend in a job folder.

`python -m distillctl_local.trainer FOLDER` reads job.json and the rows, trains, and leaves the adapter (or
the whole model) in result/ and the outcome in done.json, written last. What happens is a line each in
events.jsonl. Killed at any point and started again in the same folder, it goes on from its last whole
checkpoint and ends with the same weights. With `devices: N` it runs N times, and they train as one
(see ranks.py).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from distillctl.errors import DistillctlError, Problem, UsageError
from distillctl.recipe.models import EvaluateSpec, TaskSpec, TrainSpec
from distillctl.store.files import digest_tree, sync_folder, sync_tree, write_json
from distillctl.task import Task, build_task
from distillctl.testing.crash import crashpoint
from distillctl.types import JSON
from distillctl_local import devices, full, process, shard
from distillctl_local import frozen as frozen_prefix
from distillctl_local.hardware import freed_memory_kept
from distillctl_local.ranks import Ranks, join
from distillctl_local.settings import LocalSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from distillctl_local.data import Row
    from distillctl_local.encode import Encoder
    from distillctl_local.facts import ModelFacts
    from distillctl_local.known import Known
    from distillctl_local.losses import Loss
    from distillctl_local.stream import Prefix
    from distillctl_local.watch import Watch


_FIRST_TELLS_S = 60  # how long a rank waits for the first to say what all failed of


class Events:
    """The job's story, one JSON line an event, with a running number as its key."""

    def __init__(self, path: Path | None) -> None:
        """Opens the story; the half line of a trainer that was killed is dropped. path: None tells nobody."""
        self._path = path
        if path is None:
            return
        told = path.read_bytes() if path.exists() else b""
        whole = told[:told.rfind(b"\n") + 1]
        if whole != told:
            os.truncate(path, len(whole))
        self._number = whole.count(b"\n")

    def tell(self, message: str, level: str = "info", **data: JSON) -> None:
        """Append one event."""
        if self._path is None:
            return
        self._number += 1
        line = json.dumps({"key": str(self._number), "time": time.time(), "level": level,
                           "message": message, "data": data})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def main(folder: Path) -> int:
    """Train the job in `folder`. Returns the exit code: 0 done, 1 failed (done.json then says why)."""
    ranks = join(folder)
    events = Events(folder / "events.jsonl" if ranks.first else None)
    try:
        with freed_memory_kept():
            train(folder, events, ranks)
    except Exception as error:
        traceback.print_exc()  # into the job's own log
        if ranks.count > 1 and not isinstance(error, DistillctlError):
            ranks.report(error)  # it may be of another's end, and no outcome: they are started again
            return 1
        if not ranks.first:
            _wait_for(folder / "done.json")
            return 1
        cause = str(error) if isinstance(error, DistillctlError) else f"{type(error).__name__}: {error}"
        events.tell(cause.splitlines()[0][:500], "error")
        write_json(folder / "done.json", {"ok": False, "message": cause[:2000]})
        return 1
    return 0


def _wait_for(path: Path) -> None:
    """All ranks fail alike of a mistake; the launcher ends them all when one has ended."""
    give_up = time.monotonic() + _FIRST_TELLS_S
    while not path.exists() and time.monotonic() < give_up:
        time.sleep(0.1)


def train(folder: Path, events: Events, ranks: Ranks) -> None:
    """The whole of a job: load, train, save."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    spec = TrainSpec.model_validate(job["train"])
    settings = LocalSettings.model_validate(job["settings"])
    task = build_task(TypeAdapter(TaskSpec).validate_python(job["task"]))
    started = time.monotonic()
    if restarts := process.restarts(folder):
        events.tell("the trainer died (killed, or out of memory?) and was started again, "
                    f"{restarts} of {settings.restarts}", "warning")
    if found := (devices.problems(settings) + shard.problems(settings, spec)
                 + full.problems(spec, settings)):
        raise UsageError(*found)
    ranks.take_gpu()
    events.tell("loading the model")
    if settings.engine == "unsloth":
        from distillctl_local import unsloth_engine

        student = unsloth_engine.train(folder, job, spec, settings, events.tell)
    else:
        student = _train_with_peft(folder, job, spec, settings, task, events, ranks)
    if not ranks.first:
        return
    crashpoint("after-training")
    _save(folder, student, job, whole=spec.lora is None)
    seconds = time.monotonic() - started
    events.tell(f"trained in {seconds:.0f} s")
    write_json(folder / "done.json",
               {"ok": True, "files": digest_tree(folder / "result"), "seconds": seconds})


def _train_with_peft(folder: Path, job: dict[str, JSON], spec: TrainSpec, settings: LocalSettings,
                     task: Task, events: Events, ranks: Ranks) -> PreTrainedModel | PeftModel:
    import torch
    from transformers import set_seed

    from distillctl_local.adapter import add_adapter
    from distillctl_local.data import encode_rows
    from distillctl_local.encode import Encoder
    from distillctl_local.facts import layers_below
    from distillctl_local.hardware import choose, quantisation
    from distillctl_local.lora import drop_nothing
    from distillctl_local.models import facts_of, load_base, load_tokenizer
    from distillctl_local.sharing import choose_prefixes
    from distillctl_local.watch import Watch

    if settings.threads:
        torch.set_num_threads(max(1, settings.threads // ranks.count))
    device, dtype = choose(settings)
    set_seed(spec.seed)
    tokenizer = load_tokenizer(job["model"], job["revision"])
    model = load_base(job["model"], job["revision"], dtype=torch.float32 if spec.lora is None else dtype,
                      device="cpu" if settings.shard else device, attention="eager",
                      quantisation=quantisation(settings))
    drop_nothing(model)
    facts = facts_of(model.config)
    layers_below(facts, settings.layers)  # refuses too many
    encoder = Encoder(tokenizer)
    rows = encode_rows(folder / "train.jsonl", encoder, min(spec.max_length, facts.context))
    rows, method = choose_prefixes(rows, facts, spec, settings)
    if not settings.shard:  # whose model lies in the host's memory yet, and may be slow there
        rows, method = _tried(model, rows, method, settings, facts)
    in_bits = f", the base in {settings.bits} bits" if settings.bits in (4, 8) else ""
    every = ", every weight trained" if spec.lora is None else ""
    on = device if ranks.count == 1 else f"{ranks.count} × {device}"
    on += ", the base divided among them," if settings.shard else ""
    events.tell(f"on {on} in {str(model.dtype).removeprefix('torch.')}{in_bits}{every}; {method}")
    student = (model.requires_grad_() if spec.lora is None
               else add_adapter(model, spec, rslora=settings.rslora, layers=settings.layers))
    ranks.meet(device)
    if settings.shard:
        shard.shard(model, device, ranks)
    frozen, known = _computed_once(folder, events, model, rows, facts, settings)
    how = EvaluateSpec.model_validate(job.get("evaluate") or {})
    watch = Watch(folder, student, encoder, task, how, ranks, frozen) if settings.watches else None
    _fit(folder, events, student, tokenizer, rows, _loss(task, encoder, settings), spec, settings, watch,
         ranks, known)
    if watch:
        watch.restore_best()
    ranks.part()
    return student


def _computed_once(folder: Path, events: Events, model: PreTrainedModel, rows: list[Row], facts: ModelFacts,
                   settings: LocalSettings) -> tuple[list[Prefix], Known]:
    """What does not change from step to step: prefixes that the base alone computes, and those with what lies
    below the adapter. model: with its adapter, which is new and adds nothing yet. Raises UsageError where a
    family's lower layers cannot be left out."""
    from distillctl_local.facts import layers_below
    from distillctl_local.prefix import compute_once, differs
    from distillctl_local.sharing import bytes_below, prefixes_of
    from distillctl_local.stream import compute_prefix

    frozen = []
    if settings.shared_prefix == "frozen":
        frozen = [compute_prefix(model, prefix) for prefix in prefixes_of(rows)]
        write_json(folder / frozen_prefix.IN_JOB, [prefix.ids for prefix in frozen])
    size = bytes_below(rows, facts, settings, model.dtype.itemsize)
    layers = layers_below(facts, settings.layers) if size else 0
    known = compute_once(model, rows, layers, settings.micro_tokens, frozen)
    if known.layers:
        if why := differs(model, _shortest(rows), known):
            raise UsageError(Problem(f"{facts.family} does not compute as is known here ({why})",
                                     field="backends.local.layers", value=settings.layers,
                                     hint="leave it out"))
        events.tell(f"the {layers} layers below the adapter are computed: {size / 2**20:.0f} MiB are kept")
    return frozen, known


def _tried(model: PreTrainedModel, rows: list[Row], method: str, settings: LocalSettings,
           facts: ModelFacts) -> tuple[list[Row], str]:
    """The rows and how they are computed, or without shared prefixes where they do not suit this family:
    tried on the shortest row. Raises UsageError where they were asked for, and where nothing suits it."""
    from distillctl_local.prefix import differs

    shortest = _shortest(rows)
    if why := differs(model, replace(shortest, prefix=0)):
        raise UsageError(Problem(f"{facts.family} does not compute its logits as is known here ({why})",
                                 field="student.model", hint="take a student of another family"))
    why = differs(model, shortest) if shortest.prefix else None
    if why is None:
        return rows, method
    if settings.shared_prefix != "auto":
        raise UsageError(Problem(f"{facts.family} does not compute as is known here ({why})",
                                 field="backends.local.shared_prefix", value=settings.shared_prefix,
                                 hint="use off"))
    return ([replace(row, prefix=0) for row in rows],
            f"every row is computed whole: {facts.family} does not compute as is known here ({why})")


def _shortest(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: len(row.ids))


def _loss(task: Task, encoder: Encoder, settings: LocalSettings) -> Loss:
    from distillctl_local.losses import LabelChoice, next_token

    if settings.learn == "choice" and not task.labels:
        raise UsageError(Problem("there are no labels to choose from", field="backends.local.learn",
                                 value="choice", hint="use auto"))
    if settings.learn == "tokens" or not task.labels:
        return next_token
    return LabelChoice([encoder.completion(task.target(label)) for label in task.labels])


def _fit(folder: Path, events: Events, model: PreTrainedModel | PeftModel, tokenizer: Any, rows: list[Row],
         loss: Loss, spec: TrainSpec, settings: LocalSettings, watch: Watch | None, ranks: Ranks,
         known: Known) -> None:
    import torch
    from peft.optimizers import create_loraplus_optimizer
    from trl import SFTConfig

    from distillctl_local.fit import Tell, arguments, last_checkpoint, make_no_step
    from distillctl_local.sft import SharedPrefixTrainer

    config = SFTConfig(
        **arguments(folder, spec, settings, first=ranks.first),
        per_device_train_batch_size=spec.batch_size, bf16=False, fp16=False, gradient_checkpointing=False,
        max_length=None, remove_unused_columns=False, use_cpu=model.device.type == "cpu")

    optimizer = None  # TRL's own
    if settings.lora_plus:
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=spec.learning_rate, loraplus_lr_ratio=settings.lora_plus,
            loraplus_weight_decay=spec.weight_decay)
    callback = Tell(events.tell, watch, settings.patience)
    trainer = SharedPrefixTrainer(
        model=model, args=config, processing_class=tokenizer, rows=rows, loss=loss,
        callbacks=[callback], optimizers=(optimizer, None),
        micro_tokens=settings.micro_tokens, tell=lambda message: events.tell(message, "warning"), ranks=ranks,
        sharded=settings.shard, known=known)
    resume = ranks.as_first(last_checkpoint(folder) if ranks.first else None)
    if resume:
        events.tell(f"going on from step {resume.name.removeprefix('checkpoint-')}")
        if callback.ended(model, resume):
            make_no_step(config)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def _save(folder: Path, model: PreTrainedModel | PeftModel, job: dict[str, JSON], *, whole: bool) -> None:
    """The student's files, under their name once they are all there."""
    from distillctl_local.encode import Encoder
    from distillctl_local.models import load_tokenizer
    from distillctl_local.result import write_adapter, write_model

    partial = folder / "result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if whole:
        write_model(model, Encoder(load_tokenizer(job["model"], job["revision"])), job, partial)
    else:
        write_adapter(model, job, partial)
    sync_tree(partial)
    crashpoint("before-result")
    shutil.rmtree(folder / "result", ignore_errors=True)
    partial.rename(folder / "result")
    sync_folder(folder)
    crashpoint("after-result")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
