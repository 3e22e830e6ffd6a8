"""`backends`, `doctor` and `completion`: what is installed here."""

from __future__ import annotations

from pathlib import Path

import click

from distillctl.cli.output import json_option, say, say_json, show, workspace_option


@click.command()
@json_option
def backends(as_json: bool) -> None:
    """List the training backends that are installed, and what each can do."""
    from distillctl.registry import describe_all

    found = describe_all()
    if as_json:
        say_json([vars(info) for info in found])
        return
    from distillctl.report.terminal import table

    show(table("Backends", ("name", "from", "tasks", "data leaves", "needs"), [
        (info.name, info.distribution, ", ".join(info.task_kinds),
         "unknown" if info.data_leaves_machine is None else "yes" if info.data_leaves_machine else "no",
         info.problem or "") for info in found]))


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
