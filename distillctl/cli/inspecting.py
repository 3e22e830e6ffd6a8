"""`backends`, `doctor` and `completion`: what is installed here."""

from __future__ import annotations

from pathlib import Path

import click

from distillctl.cli.output import json_option, say, say_json, show, workspace_option


@click.command()
@json_option
def backends(as_json: bool) -> None:
    """List the training backends that are installed, and what each can do."""
    from distillctl import registry
    from distillctl.errors import DistillctlError

    rows = []
    for info in registry.installed():
        row = {"name": info.name, "from": f"{info.distribution} {info.version}", "tasks": None,
               "data leaves this machine": None, "probabilities": None, "problem": None}
        try:
            can = registry.load(info.name).capabilities
            row |= {"tasks": sorted(can.task_kinds), "data leaves this machine": can.data_leaves_machine,
                    "probabilities": can.label_probabilities}
        except DistillctlError as error:
            row["problem"] = str(error)
        rows.append(row)
    if as_json:
        say_json(rows)
        return
    from distillctl.report.terminal import table

    show(table("Backends", list(rows[0]) if rows else ["name"], [[_word(v) for v in row.values()]
                                                                  for row in rows]))


def _word(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


@click.command()
@workspace_option
@json_option
def doctor(workspace: Path, as_json: bool) -> None:
    """Look at Python, machine, packages, credentials (by name) and disk."""
    from distillctl.doctor import examine

    checks = examine(workspace)
    if as_json:
        say_json([vars(check) for check in checks])
        return
    for check in checks:
        fix = f"  [{check.fix}]" if check.fix else ""
        say(f"{check.level.upper():4}  {check.what}{fix}")


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script for a shell; e.g. eval "$(distillctl completion bash)"."""
    from click.shell_completion import get_completion_class

    from distillctl.cli.main import cli

    source = get_completion_class(shell)
    if source is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(source(cli, {}, "distillctl", "_DISTILLCTL_COMPLETE").source())
