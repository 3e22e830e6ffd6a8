"""The command line: one thin function a command, each a call into the library.

Importing this imports click and nothing else; every command imports what it needs when it is called, so
that `--help` and `check` stay quick.
"""

from __future__ import annotations

import os
import sys

import click

from distillctl.cli import errors, inspecting, recipes, results, running, using, watching
from distillctl.cli.endpoints import endpoints
from distillctl.cli.output import CONTEXT, fail
from distillctl.cli.sandbox import sandbox

EPILOG = "Start with: distillctl init classification my-task, or distillctl run recipes/routing.yaml"


@click.group(context_settings=CONTEXT, epilog=EPILOG)
@click.version_option(package_name="distillctl")
def cli() -> None:
    """Distil a bounded language-model task into a small student, and learn whether it can take over."""


for _command in (
    recipes.init, recipes.check, recipes.schema,
    running.plan, running.run, running.status, running.attach, running.cancel,
    results.eval_command, results.compare, results.report, results.verify, errors.errors,
    watching.import_command, watching.drift, watching.gate,
    using.predict, using.serve, using.export,
    inspecting.backends, inspecting.doctor, inspecting.completion, sandbox,
    endpoints,
):
    cli.add_command(_command)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 the run failed, 2 wrong usage or input, 130 interrupted."""
    from distillctl.errors import DistillctlError
    from distillctl.secrets import redact_logs

    redact_logs()
    # A model's threads wait for each other asleep. Awake they take the cores from whatever else runs, and one
    # request then takes up to ten times as long. OpenMP reads it once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DistillctlError as error:
        fail(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
