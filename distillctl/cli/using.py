"""`predict`, `serve` and `export`: a finished run's student at work."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distillctl.cli.output import json_option, reporter, say, say_json, workspace_option

yes_option = click.option("--yes", "-y", is_flag=True,
                          help="Agree that a hosted student is asked over the network, and billed.")


@click.command()
@click.argument("run")
@click.option("--input", "-i", "source", required=True,
              type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="JSONL, CSV or Parquet with the fields of the recipe's prompt.")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="JSONL to write; one that was interrupted is gone on with.")
@click.option("--engine", type=click.Choice(["local", "ray", "vllm"]), default="local", show_default=True,
              help="ray: workers on the Ray cluster that RAY_ADDRESS names, else on a Ray of this machine. "
                   "vllm: vLLM on this machine.")
@click.option("--workers", type=click.IntRange(min=1),
              help="With ray: copies of the student.  [default: one a GPU, else one a node]")
@yes_option
@workspace_option
@json_option
def predict(run: str, source: Path, output: Path, engine: str, workers: int | None, yes: bool,
            workspace: Path, as_json: bool) -> None:
    """Let a run's student answer every row of a file, in order; the same command goes on after a stop."""
    from distillctl import predict as work
    from distillctl.engines import open_on
    from distillctl.errors import Problem, UsageError
    from distillctl.using import check_consent

    ctx = _context(run, workspace)
    if output.exists() and output.samefile(source):
        raise UsageError(Problem("is the input itself", "--output", value=str(output)))
    check_consent(ctx, yes)
    rows = work.refuse_hopeless(work.read_requests(source, ctx.task, ctx.recipe.data.id))
    try:
        with open_on(ctx, engine, workers) as student:
            found = work.predict(student, rows, output, ctx.reporter, total=work.count_rows(source))
    except KeyboardInterrupt:
        say(f"interrupted; what is answered is in {output}, and the same command goes on", err=True)
        raise
    if as_json:
        say_json(found.as_json())
    else:
        _tell_summary(found)
    if found.failed:
        for error in found.errors:
            say(f"error: {error}", err=True)
        if found.failed > len(found.errors):
            say(f"error: and {found.failed - len(found.errors)} more", err=True)
        sys.exit(1)


def _tell_summary(found) -> None:
    from distillctl.progress import seconds_text

    parts = [f"{found.rows} rows in {seconds_text(found.seconds)}"]
    for count, word in ((found.reused, "answered before"), (found.failed, "failed"),
                        (found.unreadable, "cannot be read")):
        if count:
            parts.append(f"{count} {word}")
    say(", ".join(parts))
    for value, count in found.values.most_common():
        say(f"  {value}  {count}")
    say(f"output  {found.output}")


def _context(run: str, workspace: Path):
    from distillctl.store.workspace import Workspace
    from distillctl.using import context_of

    place = Workspace(workspace.resolve())
    return context_of(place.find_run(run), place, reporter())


@click.command()
@click.argument("run")
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Listen on this address; one that others can reach needs --api-key-env.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True,
              help="0 takes a free one.")
@click.option("--api-key-env", metavar="NAME",
              help="The environment variable with the key that clients must send.")
@click.option("--max-body", type=click.IntRange(min=1024), default=1 << 20, show_default=True,
              metavar="BYTES", help="Largest request.")
@click.option("--max-requests", type=click.IntRange(min=1), default=256, show_default=True,
              help="Most requests that wait or are answered at once; more are refused with 429.")
@click.option("--cascade", is_flag=False, flag_value="run", metavar="[THRESHOLD]",
              help="Below this probability of the student's answer the recipe's teacher answers; without a "
                   "number, the threshold that the evaluation chose on dev.")
@yes_option
@workspace_option
def serve(run: str, host: str, port: int, api_key_env: str | None, max_body: int, max_requests: int,
          cascade: str | None, yes: bool, workspace: Path) -> None:
    """Serve a run's student as OpenAI chat completions, with /health and /metrics. Ctrl-C ends it."""
    key = _key(api_key_env)
    ctx = _context(run, workspace)
    _check_installed()
    from contextlib import ExitStack

    from distillctl.serve import cascade as behind
    from distillctl.serve.app import Limits
    from distillctl.serve.server import Server
    from distillctl.using import budget_of, check_consent, open_student

    threshold = None
    if cascade is not None:
        threshold = behind.threshold_of(ctx, _share(cascade))
        behind.check_consent(ctx, yes)
    check_consent(ctx, yes)
    with ExitStack() as stack:
        deferring = None
        budget = None if threshold is None else budget_of(ctx)
        student = stack.enter_context(open_student(ctx, budget))
        if budget is not None and threshold is not None:
            deferring = stack.enter_context(behind.open_cascade(ctx, student, threshold, budget))
        server = Server(student, host=host, port=port, key=key, limits=Limits(max_body, max_requests),
                        cascade=deferring)
        say(f"{student.run} answers at {server.url}/v1 as model {ctx.recipe.name!r}"
            + (f"; the key is that of {api_key_env}" if key else "; no key is asked for"))
        if deferring:
            say(f"below a probability of {threshold:g} the teacher {ctx.recipe.teacher.model} answers")
        say("Ctrl-C ends it")
        server.run()
    say("stopped")


@click.command()
@click.argument("run")
@click.option("--to", "form", required=True,
              type=click.Choice(["adapter", "merged", "gguf", "ollama", "vllm"]),
              help="adapter: LoRA as PEFT reads it; merged: whole safetensors; gguf: for llama.cpp; ollama: "
                   "that with a Modelfile; vllm: files and a command line.")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="A new folder.")
@click.option("--numbers", type=click.Choice(["q8_0", "bf16", "f16", "f32"]),
              show_default="q8_0 in a GGUF, bf16 merged, f32 of a whole model",
              help="How weights are stored.")
@click.option("--verify/--no-verify", default=None, show_default="yes for merged, gguf and ollama",
              help="Let what was exported answer the test split, beside the student.")
@click.option("--max-changed", type=click.FloatRange(0, 1), default=0.02, show_default=True,
              help="Largest share of test items that may then be answered differently; more is exit code 1.")
@workspace_option
@json_option
def export(run: str, form: str, output: Path, numbers: str | None, verify: bool | None, max_changed: float,
           workspace: Path, as_json: bool) -> None:
    """Write a run's student as files for other programs, and check that it still answers as it did."""
    from distillctl.export import export_run

    ctx = _context(run, workspace)
    done = export_run(ctx, form, output, numbers=numbers, verify=verify, most_changed=max_changed)
    if as_json:
        say_json(done.as_json())
    else:
        for name, size in done.files.items():
            say(f"  {name}  {size / 1e6:.1f} MB")
        say(f"exported to {done.folder}")
        for note in done.notes:
            say(note)
    if done.check and not as_json:
        say(done.check.sentence())
    if done.check and not done.check.passed:
        say(f"error: {output} does not answer as the student does: {done.check.sentence()}", err=True)
        sys.exit(1)


def _share(text: str) -> float | None:
    """A threshold, None for the run's own."""
    if text == "run":
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"a probability from 0 to 1, not {text!r}", param_hint="--cascade")
    return share


def _key(name: str | None):
    from distillctl import secrets
    from distillctl.errors import Problem, UsageError

    if name is None:
        return None
    key = secrets.get(name)
    if key is None or len(key.reveal()) < 16:
        what = "is not set" if key is None else "holds a key of fewer than 16 characters"
        raise UsageError(Problem(f"the environment variable {name} {what}", "--api-key-env",
                                 hint=f"for example: export {name}=$(openssl rand -hex 24)"))
    return key


def _check_installed() -> None:
    """Raises MissingExtra where the extra `serve` is not there."""
    from importlib.util import find_spec

    from distillctl.errors import MissingExtra, Problem

    if missing := [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise MissingExtra(Problem(f"serving needs {', '.join(missing)}",
                                   hint="pip install 'distillctl[serve]'"))
