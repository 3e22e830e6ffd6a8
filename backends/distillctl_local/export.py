"""A local student as files for other programs: adapter, merged weights, GGUF, Ollama, vLLM.

The merged and GGUF forms start from the base's own weights, loaded anew: an adapter is never merged into
weights that were quantised for training. The sums of base and adapter are made in 32 bits and rounded once,
when they are written. A check computes in 32 bits too, so that it sees the numbers as they were written; the
student is asked again where the run computed its answers in fewer.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from distillctl.backend import StudentRef
from distillctl.errors import Problem, StudentError
from distillctl.export import Exported, ExportJob
from distillctl.store.files import digest_tree, safe_join
from distillctl.types import JSON, Message, Predictor
from distillctl_local.encode import Encoder
from distillctl_local.frozen import refuse
from distillctl_local.models import source_of
from distillctl_local.safety import CONFIG
from distillctl_local.templates import ASKED, TemplateRefused, exported, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GGUF = "model.gguf"
# Else vLLM takes what the base's generation_config.json says, and a temperature of 1 where that says nothing.
_GREEDY = """--generation-config vllm --override-generation-config '{"temperature": 0}'"""


class AsOthers(Encoder):
    """Prompts as programs make them that are given exported files: the template is told nothing, or `told`,
    and what it writes is tokenised in one piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None,
                 told: Mapping[str, JSON] | None = None) -> None:
        """template: taken in place of the tokenizer's own."""
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = template or tokenizer.chat_template
        super().__init__(tokenizer)
        self._told = told or {}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        layout = self.layout(tuple(message["role"] for message in messages))
        before, *after = layout.around
        return self._special(before + "".join(
            content + text for content, text in zip(layout.contents(messages), after, strict=True)))

    def _render(self, messages: list[Message], *, start_answer: bool) -> str:
        try:
            return render(self.tokenizer, messages, start_answer=start_answer, asked=self._told)
        except TemplateRefused as error:
            raise self._refuses(str(error)) from None


def export(job: ExportJob, into: Path) -> Exported:
    """See `distillctl.export.Exporter`."""
    refuse(job.student, "cannot be exported")
    makers = {"adapter": _adapter, "merged": _merged, "gguf": _gguf, "ollama": _ollama, "vllm": _vllm}
    return makers[job.form](job, into)


def _adapter(job: ExportJob, into: Path) -> Exported:
    _needs_adapter(job)
    _copy(job, into)
    base = source_of(job.student.model)
    return Exported((f"the base model is {base}", "in Python: peft.PeftModel.from_pretrained(BASE, FOLDER)"),
                    lambda folder: _open(job, folder, "adapter"), _student(job))


def _merged(job: ExportJob, into: Path) -> Exported:
    import torch

    from distillctl_local.result import answer_as_trained

    model, encoder = _load(job)
    model.to({"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[job.numbers])
    answer_as_trained(model, encoder)
    encoder.tokenizer.chat_template = exported(encoder.tokenizer)
    model.save_pretrained(into)
    encoder.tokenizer.save_pretrained(into)
    return Exported(("in Python: transformers.AutoModelForCausalLM.from_pretrained(FOLDER)",
                     f"with vLLM: {_vllm_serve(job, job.numbers == 'f32')}"),
                    lambda folder: _asked_by_others(_open(job, folder, "model")), _student(job))


def _gguf(job: ExportJob, into: Path) -> Exported:
    return _write_gguf(job, *_load(job), into)


def _write_gguf(job: ExportJob, model: PreTrainedModel, encoder: Encoder, into: Path) -> Exported:
    from distillctl_local.export_gguf import open_gguf, template_in, write_gguf

    write_gguf(model, encoder, into / GGUF, name=job.name, numbers=job.numbers)
    return Exported((f"with llama.cpp: llama-server -m {{folder}}/{GGUF} --jinja --temp 0",),
                    lambda folder: _asked_by_others(open_gguf(job, encoder, folder / GGUF),
                                                    template_in(folder / GGUF)), _student(job))


def _ollama(job: ExportJob, into: Path) -> Exported:
    from distillctl_local.export_ollama import modelfile
    from distillctl_local.models import facts_of

    model, encoder = _load(job)
    text = modelfile(encoder, job, GGUF, facts_of(model.config).context)
    (into / "Modelfile").write_text(text, encoding="utf-8")
    made = _write_gguf(job, model, encoder, into)
    name = _served(job)
    return Exported((f"cd {{folder}} && ollama create {name} -f Modelfile", f"ollama run {name}"), made.open,
                    made.student)


def _vllm(job: ExportJob, into: Path) -> Exported:
    from distillctl_local.vllm_engine import smallest_rank

    _copy(job, into)
    prompts, template = _vllm_prompts(job)

    def opened(folder: Path) -> AbstractContextManager[Predictor]:
        return _asked_by_others(_open(job, folder, job.student.kind), template, ASKED)

    if job.student.kind == "model":
        from distillctl_local.predictor import is_stored_in_fp32

        return Exported((f"{_vllm_serve(job, is_stored_in_fp32(into))} {prompts}",), opened, _student(job))
    most = smallest_rank(json.loads((into / CONFIG).read_text(encoding="utf-8"))["r"])
    revision = job.student.data.get("revision")
    base = shlex.quote(source_of(job.student.model))
    base += f" --revision {shlex.quote(revision)}" if revision else ""
    # vLLM keeps prompts' beginnings by the adapter's name and path: another student needs another name
    return Exported((f"vllm serve {base} --enable-lora "
                     f"--max-lora-rank {most} --lora-modules {_served(job)}={{folder}} {_GREEDY} {prompts}",),
                    opened, _student(job))


def _vllm_serve(job: ExportJob, fp32: bool) -> str:
    """The command line for a whole model. vLLM would round weights in fp32 to 16 bits if it were not told."""
    return (f"vllm serve {{folder}}{' --dtype float32' if fp32 else ''} --served-model-name {_served(job)} "
            f"{_GREEDY}")


def _vllm_prompts(job: ExportJob) -> tuple[str, str | None]:
    """What has vLLM make our prompts with the student's own files: options, and the template that they bring.

    A base that is not on this machine is not fetched for it: nearly all have a template, and one that knows
    of no thinking leaves the option unread.
    """
    from distillctl_local.models import facts_at_hand, load_tokenizer
    from distillctl_local.predictor import weights_of

    _, name, revision, _ = weights_of(job.student, job.folder)
    if facts_at_hand(name, revision) is not None:
        tokenizer = load_tokenizer(name, revision)
        if not tokenizer.chat_template:
            template = exported(tokenizer)
            return f"--chat-template {shlex.quote(template)}", template
    return f"--default-chat-template-kwargs {shlex.quote(json.dumps(dict(ASKED)))}", None


def _needs_adapter(job: ExportJob) -> None:
    if job.student.kind != "adapter":
        raise StudentError(Problem("this student is a whole model and has no adapter",
                                   hint="export it as merged or gguf"))


def _files(job: ExportJob) -> Path:
    return safe_join(job.folder, job.student.path or ".")


def _copy(job: ExportJob, into: Path) -> None:
    """The student's own files, after their digests."""
    from distillctl_local.safety import check_digests

    files = _files(job)
    check_digests(files, job.student.files)
    for name in job.student.files:
        shutil.copyfile(files / name, into / name)


def _served(job: ExportJob) -> str:
    """A name that no other student has; run names hold nothing that a shell reads."""
    return job.name.replace("/", "-")


def _load(job: ExportJob) -> tuple[PreTrainedModel, Encoder]:
    """The student as one plain model in 32 bits, and its encoder."""
    import torch

    from distillctl_local.predictor import load_student

    loaded = load_student(job.student, job.folder, dtype=torch.float32, device="cpu")
    return loaded.model, loaded.encoder


def _open(job: ExportJob, folder: Path, kind: str) -> AbstractContextManager[Predictor]:
    """A predictor for an exported folder, which computes in 32 bits."""
    ref = StudentRef("local", kind, job.student.model, ".", digest_tree(folder), job.student.data)
    return _in_32_bits(job, ref, folder)


@contextmanager
def _asked_by_others(opened: AbstractContextManager[Predictor], template: str | None = None,
                     told: Mapping[str, JSON] | None = None) -> Iterator[Predictor]:
    """The predictor, given the prompts that other programs would make: see `AsOthers`."""
    with opened as predictor:
        predictor.encoder = AsOthers(predictor.encoder.tokenizer, template, told)
        yield predictor


def _student(job: ExportJob) -> Callable[[], AbstractContextManager[Predictor]] | None:
    """How to ask the run's student in 32 bits; None where its answers were computed so."""
    if job.answered_by.get("products") == "float32":
        return None
    return lambda: _in_32_bits(job, job.student, job.folder)


def _in_32_bits(job: ExportJob, student: StudentRef, folder: Path) -> AbstractContextManager[Predictor]:
    from distillctl_local.hardware import gpu_memory_available
    from distillctl_local.models import facts_at_hand
    from distillctl_local.predictor import open_local

    weights = str(safe_join(folder, student.path or ".")) if student.kind == "model" else student.model
    facts, room = facts_at_hand(weights, student.data.get("revision")), gpu_memory_available()
    # four bytes a weight, and a quarter more for what is computed
    fits = room is None or facts is None or facts.parameters is None or 5 * facts.parameters < room
    return open_local(student, folder, job.task, job.how, precision="fp32", device="auto" if fits else "cpu")
