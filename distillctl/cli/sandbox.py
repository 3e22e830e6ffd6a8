"""`sandbox`: a provider on loopback, to rehearse hosted training with."""

from __future__ import annotations

from pathlib import Path

import click

from distillctl.cli.output import say
from distillctl.sandbox import PARTS


@click.command()
@click.argument("name", type=click.Choice(sorted(PARTS)))
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="a free one",
              help="Listen on this port of 127.0.0.1.")
@click.option("--state", type=click.Path(path_type=Path, file_okay=False),
              show_default="forgotten at the end",
              help="Keep files, jobs and students here; a restart goes on with them.")
@click.option("--student", default="local", show_default=True, metavar="NAME",
              help="What really trains: an installed backend of this machine, or `nearest`, which answers as "
                   "the most similar training row.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Seconds of the provider's waiting in one of yours.")
@click.option("--fault", "faults", multiple=True, metavar="ROUTE=WHAT[:VALUE][*TIMES]",
              help="Make calls fail, e.g. jobs.create=drop_after or jobs.get=status:503*20. A wrong one "
                   "lists what there is. Repeatable.")
def sandbox(name: str, port: int, state: Path | None, student: str, speed: float,
            faults: tuple[str, ...]) -> None:
    """Stand in for a hosted provider on this machine: its wire format, states, delays and refusals, and
    behind them a small model that really learns from what is uploaded. Costs nothing; Ctrl-C ends it."""
    import tempfile
    import time

    from distillctl.sandbox import part
    from distillctl.sandbox.faults import parse_fault
    from distillctl.sandbox.server import Sandbox, counts

    found = part(name)
    coming = [parse_fault(text, [route.name for route in found.routes()]) for text in faults]
    with tempfile.TemporaryDirectory(prefix="distillctl-sandbox-") as forgotten, Sandbox(
            found, state or Path(forgotten), tuner=student, port=port, speed=speed, faults=coming) as server:
        say(f"{name} sandbox at {server.url}; state in {state or 'memory of this run alone'}")
        for line in server.part.pointers(server.url):
            say(f"  {line}")
        say("Ctrl-C ends it")
        try:
            while True:
                time.sleep(1)  # a wait without end may sleep through a signal that another thread was given
        except KeyboardInterrupt:
            seen = counts(server)
            say(f"{sum(seen['requests'].values())} requests, {seen['jobs']} jobs")
            for charge in seen["charges"]:
                say(f"  billed: {charge['what']} {charge['id']}, {charge['amount']:g} {charge['unit']}")
