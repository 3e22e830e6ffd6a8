"""`devices: N`: the trainer as N processes, started and ended together by accelerate's launcher.

`python -m distillctl_local.launch FOLDER N`. One that dies takes the others with it, and then the launcher
ends, with an exit code that is not 0: to whoever watches the job's folder they are one trainer.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from distillctl_local import process

_INTERFACES = ("lo", "lo0")  # this machine's own: nothing of a training is to be had from elsewhere


def arguments(folder: Path, devices: int) -> list[str]:
    """For `accelerate launch`. All that a configuration file of the user's could say otherwise is said."""
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1
    return [
        "--multi_gpu",  # processors too: --cpu starts one process, unless there is an MPI
        "--num_processes", str(devices), "--num_machines", "1", "--machine_rank", "0", "--gpu_ids", "all",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "--num_cpu_threads_per_process", str(max(1, threads // devices)),
        "--module", "distillctl_local.trainer", str(folder)]


def main(folder: Path, devices: int) -> int:
    """Run the trainer's ranks to their end. Returns the exit code: 0, or 1 where one of them failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[process.LAUNCHER] = str(os.getpid())
    for interface in _INTERFACES:
        if interface in {name for _, name in socket.if_nameindex()}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    try:
        launch_command(launch_command_parser().parse_args(arguments(folder, devices)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        told = failure.message
        why = told["message"] if isinstance(told, dict) else told  # the latter where a signal ended it
        print(f"rank {rank} of {devices} was the first to fail: {why}", flush=True)  # noqa: T201 - the log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
