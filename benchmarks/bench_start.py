"""How long a person waits for the commands that only look: `--help`, `check`, `plan`, `status`.

    python benchmarks/bench_start.py [--runs 10]

Prints the median and the slowest of some runs of each, as whole processes in this folder, beside an empty
Python process as the floor that no command can go under.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from distillctl.context import machine

RECIPE = str(Path(__file__).parents[1] / "recipes" / "routing.yaml")
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "--help": ["-m", "distillctl.cli.main", "--help"],
    "check": ["-m", "distillctl.cli.main", "check", RECIPE],
    "plan": ["-m", "distillctl.cli.main", "plan", RECIPE],
    "status": ["-m", "distillctl.cli.main", "status"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    lines = [machine(), f"{'':16}{'median':>9}{'slowest':>9}"]
    for name, arguments in COMMANDS.items():
        seconds(arguments)  # files into the cache
        times = [seconds(arguments) for _ in range(runs)]
        lines.append(f"{name:16}{statistics.median(times):8.3f}s{max(times):8.3f}s")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
