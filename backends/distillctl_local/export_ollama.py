"""An Ollama Modelfile (docs.ollama.com/modelfile) for a student's GGUF.

Ollama's templates are Go's, a model's chat template is Jinja. A bounded task has one turn, so the Go
template is read off what the chat template writes around one.
"""

from __future__ import annotations

from distillctl.errors import Problem, StudentError
from distillctl.export import ExportJob
from distillctl_local.encode import Encoder


def modelfile(encoder: Encoder, job: ExportJob, weights: str, context: int) -> str:
    """The Modelfile's text. weights: the GGUF's name beside it; context: tokens that the model reads.

    Raises StudentError where the chat template's text cannot stand in a Go template.
    """
    end = encoder.tokenizer.convert_ids_to_tokens(encoder.end_id)
    lines = [f"# {job.name}, exported by distillctl", f"FROM ./{weights}",
             f'TEMPLATE """{go_template(encoder, end)}"""']
    if job.task.spec.system is not None:
        lines.append(f'SYSTEM """{_plain(job.task.spec.system)}"""')
    lines += [f'PARAMETER stop "{end}"', "PARAMETER temperature 0", "PARAMETER top_k 1",
              "PARAMETER repeat_penalty 1",  # 1.1 where nothing is said
              f"PARAMETER num_ctx {context}", f"PARAMETER num_predict {job.how.max_tokens}"]
    return "\n".join(lines) + "\n"


def go_template(encoder: Encoder, end: str) -> str:
    """One turn, with a system text or without, as the student's chat template writes it."""
    before, answer = encoder.layout(("user",)).around
    text = _literal(before) + "{{ .Prompt }}" + _literal(answer)
    try:
        opening, between, after = encoder.layout(("system", "user")).around
    except StudentError:
        pass  # a template without a system turn
    else:
        if after != answer:
            raise StudentError(Problem("the chat template closes a turn differently after a system text: "
                                       "Ollama's templates cannot say that",
                                       where=encoder.tokenizer.name_or_path, hint="export it as gguf"))
        text = ("{{ if .System }}" + _literal(opening) + "{{ .System }}" + _literal(between) + "{{ else }}"
                + _literal(before) + "{{ end }}{{ .Prompt }}" + _literal(answer))
    return text + "{{ .Response }}" + _literal(end)


def _literal(text: str) -> str:
    if "{{" in text:
        raise StudentError(Problem("the chat template writes braces that a Go template would run",
                                   value=text))
    return _plain(text)


def _plain(text: str) -> str:
    if '"""' in text:
        raise StudentError(Problem('holds """, which ends a text in a Modelfile', value=text[:100],
                                   hint="export it as gguf"))
    return text
